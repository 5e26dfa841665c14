"""A command that has work done by others: `python pool_worker.py FOLDER`.

Each of two workers makes FOLDER/.half-N and works on; whatever ends it, the folder goes. FOLDER/pids names the workers.
"""

import os
import shutil
import signal
import sys
import time

from omnidiff_jax.cli import guard
from omnidiff_jax.errors import UserError
from omnidiff_jax.signals import leave
from omnidiff_jax.workers import Workers, advance


def work(folder, number):
    half = os.path.join(folder, f".half-{number}")
    try:
        os.mkdir(half)
        with open(os.path.join(folder, f"pid-{number}"), "w") as file:
            file.write(str(os.getpid()))
        for _ in range(6000):
            advance()
            time.sleep(0.01)
    finally:
        shutil.rmtree(half)


factor = 2


def prepare():
    global factor
    factor = 20


def double(number):
    advance(5)
    if number < 0:
        raise UserError("a number below 0")
    return factor * number


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def main():
    with Workers(2) as workers:
        for number, _ in workers.run(work, {number: (sys.argv[1], number) for number in range(4)}):
            print(number)


if __name__ == "__main__":
    leave(lambda: guard("pool", main))
