"""What every test may take for granted."""

import os
import signal

from hypothesis import HealthCheck, settings

# Side by side with other work, threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A job in the background starts with Ctrl-C switched off, and so would its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)

# No test may depend on how busy the machine is, nor on what was drawn last time.
settings.register_profile("book", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("book")
