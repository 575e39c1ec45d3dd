"""SIGKILL at random moments of a chain of attempts."""

import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import manifest_of

from .campaign import SEED, assert_same, assert_sound, finish, share, train


def chain(output: Path, whole: Path, seed: str, kills: int, seconds: float) -> int:
    """Kills attempts, each at a random moment within `seconds`, then lets one end; how many kills,
    fewer where an attempt came to its end before its moment."""
    moments = random.Random(seed)
    attempts = 0
    done = 0
    while done < kills:
        process = train(output)
        try:
            said = process.communicate(timeout=moments.uniform(0.05, seconds))[1]
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()[1]
        assert_sound(output)
        if process.returncode == 0:  # it was faster: that one is not counted
            break
        assert process.returncode == -9, said
        attempts += '"event": "start"' in said
        done += 1
    folder = finish(output)
    assert_same(folder, whole)
    resumed = manifest_of(folder)["training"]["resumed"]
    # A kill may come between the claim and its event, or after the publication.
    assert attempts - 1 <= resumed <= done
    print(f"chain {seed}: {done} kills, {resumed} resumed")
    return done


@pytest.fixture(scope="module")
def seconds(tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long a run takes here beside another, so that the kills fall on all of it."""
    outputs = [tmp_path_factory.mktemp("timed") for _ in range(2)]
    start = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(finish, outputs))
    return time.monotonic() - start


def test_a_chain_of_kills_ends_with_the_same_bytes(
    undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    whole, seconds = undisturbed
    chain(tmp_path, whole, f"{SEED}", 2, 0.5 * seconds)


@pytest.mark.slow
def test_two_hundred_kills_over_forty_chains_end_with_the_same_bytes(
    whole: Path, seconds: float, tmp_path: Path
) -> None:
    kills, chains = 0, 0
    while kills < share(200):
        more = range(chains, chains + max(1, (share(200) - kills) // 5))
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(
                lambda n: chain(tmp_path / f"{n}", whole, f"{SEED}-{n}", 5, 1.2 * seconds), more
            )
            kills, chains = kills + sum(found), more.stop
    print(f"{kills} kills over {chains} chains")
