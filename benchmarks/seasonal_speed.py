"""Training steps of the seasonal VAE: ours, PyTorch's own convolutions, and Keras with TensorFlow.

    python benchmarks/seasonal_speed.py [--tf PYTHON] [--rounds 9] [--steps 20]

40 filters, windows of 7·96 hours, batches of 64, Adam, one thread. The ways
take turns, and the clock is the processor time of their processes. TensorFlow
seldom lives in the same environment: `--tf` names the Python of one that has
it, and this file runs there as a worker that does a round when told to."""

import argparse
import json
import math
import os
import subprocess
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"
HOURS, BATCH = 7 * 96, 64


def keras_steps():
    """A function of n that does n steps: the article's code, without `fit`."""
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    import keras
    import numpy as np
    import tensorflow as tf
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    conv, back = keras.layers.Conv1D, keras.layers.Conv1DTranspose
    encoder = keras.Sequential([
        keras.Input((HOURS, 1)), conv(40, 5, 3, "same", activation="relu"),
        *[conv(40, 3, 2, "same", activation="relu") for _ in range(4)], conv(20, 3, 2, "same")])
    decoder = keras.Sequential([
        keras.Input((HOURS // 96, 10)), *[back(40, 3, 2, "same", activation="relu") for _ in range(5)],
        back(1, 5, 3, "same")])
    prior = keras.Sequential([keras.Input((HOURS // 96, 6)), keras.layers.Dense(20, use_bias=False)])
    noise = tf.Variable(0.)
    weights = [*encoder.trainable_variables, *decoder.trainable_variables, *prior.trainable_variables, noise]
    assert sum(int(np.prod(w.shape)) for w in weights) == 42_942
    adam = keras.optimizers.Adam(1e-3)
    adam.build(weights)

    @tf.function
    def step(x, c):
        with tf.GradientTape() as tape:
            mu, logvar = tf.split(encoder(x), 2, -1)
            mean, spread = tf.split(prior(c), 2, -1)
            z = mu + tf.random.normal(tf.shape(mu)) * tf.exp(.5 * logvar)
            error = (x - decoder(z))**2 * tf.exp(-noise)
            nll = .5 * tf.reduce_sum(math.log(2 * math.pi) + noise + error, [1, 2])
            kl = spread - logvar + (tf.exp(logvar) + (mu - mean)**2) * tf.exp(-spread) - 1
            loss = tf.reduce_mean(nll + .5 * tf.reduce_sum(kl, [1, 2]))
        adam.apply_gradients(zip(tape.gradient(loss, weights), weights))
        return loss

    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(BATCH, HOURS, 1)).astype("float32"))
    c = tf.constant(rng.normal(size=(BATCH, HOURS // 96, 6)).astype("float32"))
    def run(n):
        for _ in range(n): loss = step(x, c)
        float(loss)
    return run


def torch_steps(stock):
    """The same with this package, or with PyTorch's own convolutions."""
    import torch
    from vae_notes import seasonal
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = seasonal.SeasonalVAE()
    if stock:
        for layer in model.modules():
            if isinstance(layer, seasonal.SameConv1d):
                layer.forward = lambda x, layer=layer: seasonal._stock(layer, x)
    adam = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    x, cond = torch.randn(BATCH, 1, HOURS), torch.randn(BATCH, HOURS // 96, 6)
    def run(n):
        for _ in range(n):
            loss = model.terms(x, cond)["loss"]
            loss.backward()
            adam.step()
            adam.zero_grad()
        loss.item()
    return run


def worker():
    """Rounds on demand: a number of steps in, seconds of this process out."""
    run = keras_steps()
    for line in sys.stdin:
        start = time.process_time()
        run(int(line))
        print(json.dumps(time.process_time() - start), flush=True)


class Remote:
    """`worker` in another environment; `seconds` is what its steps took."""
    def __init__(self, python):
        self.process = subprocess.Popen([python, __file__, "--worker"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    def seconds(self, n):
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tf", help="a Python that has tensorflow and keras")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker: return worker()
    import torch
    from timing import report
    local = {"ours": torch_steps(False), "PyTorch's own": torch_steps(True)}
    def timed(run):
        def seconds(n):
            torch.set_float32_matmul_precision("medium")  # as `fit` has it, where it is exact
            start = time.process_time()
            run(n)
            return time.process_time() - start
        return seconds
    ways = {name: timed(run) for name, run in local.items()}
    remote = None
    if given.tf:
        remote = Remote(given.tf)
        ways["tf.function"] = remote.seconds
    seconds = {name: [] for name in ways}
    for r in range(given.rounds + 1):
        for name, way in ways.items():
            took = way(given.steps)
            if r: seconds[name].append(took)  # the first round warms up
    if remote: remote.process.stdin.close()
    report(seconds, "tf.function" if given.tf else "PyTorch's own")
    for name, times in seconds.items():
        print(f"{name:40} {BATCH * given.steps / sorted(times)[len(times) // 2]:9,.0f} windows a second of processor time")


if __name__ == "__main__": main()
