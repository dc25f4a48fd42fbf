"""What every test may take for granted."""

import os
import signal

# Side by side with other work, threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A job in the background starts with Ctrl-C switched off, and so would its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)
