"""Every call of the operating system fails in turn: no wrong or partial file, no traceback, no hang, no leftovers."""

import errno
import random

import pytest
from faulty import ALL, FAIL, FAIL_FROM, LOOKS, READS, SHORT, WRITES, evenly
from small_runs import RUNS, found, leftovers, unchanging

# How each fault is made: mode, error and which calls. A full disk stays full.
FAULTS = {
    "fails": (FAIL, errno.EIO, ALL),
    "is interrupted": (FAIL, errno.EINTR, ALL),
    "fails to look at a file": (FAIL, errno.EIO, LOOKS),
    "is cut short": (SHORT, 0, READS | WRITES),
    "finds the disk full": (FAIL, errno.ENOSPC, WRITES),
    "finds the disk full from then on": (FAIL_FROM, errno.ENOSPC, WRITES),
}
REFUSED = (2, 3, 5)  # 2: an input that cannot be looked at counts as one that is not there
# The most points of a run that --long tries; of a run with more, every second, third and so on. A streamed search has
# the most, 4,560: it opens and reads the experts' files again and again.
MOST = 500


@pytest.mark.parametrize("name", RUNS)
def test_each_call_in_turn(faulty, name, how_many, record_property):
    run = RUNS[name]
    folder = faulty.folder()
    whole = faulty.run(run.arguments, folder)
    assert whole.code == 0, whole.err
    wanted = unchanging(found(folder, run))
    faulty.remove(folder)
    points = []
    for fault, (_, _, kinds) in FAULTS.items():
        folder = faulty.folder()
        points += [(fault, number) for number in range(faulty.run(run.arguments, folder, kinds=kinds).calls)]
        faulty.remove(folder)
    chosen = evenly(points, MOST)
    tried = random.Random(name).sample(chosen, min(len(chosen), how_many(4, MOST)))
    for point in tried:
        check(faulty, run, wanted, *point)
    record_property("points", len(tried))


def check(faulty, run, wanted, fault, number):
    """Let one call of a run meet a fault, and look at what is left; then run it again as a user would."""
    mode, error, kinds = FAULTS[fault]
    folder = faulty.folder()
    disturbed = faulty.run(run.arguments, folder, mode=mode, number=number, error=error, kinds=kinds)
    told = (fault, number, disturbed)
    assert disturbed.code in (0, *REFUSED), told
    assert "Traceback" not in disturbed.err, told
    there = unchanging(found(folder, run))
    for file, content in there.items():
        is_begun = file.endswith(".jsonl") and disturbed.code and content == wanted[file][: len(content)]
        says_why = file.endswith("junit.xml") and disturbed.code and b"<error " in content
        is_whole = says_why and content.rstrip().endswith(b"</testsuite>")  # the report of why there is no outcome
        assert is_begun or is_whole or content == wanted.get(file), (file, told)
    assert disturbed.code or there.keys() == wanted.keys(), told
    again = run.arguments + (" --resume" if run.saves else " --force" if wanted else "")
    next_one = faulty.run(again, folder)
    assert next_one.code == 0 and "Traceback" not in next_one.err, (told, next_one)
    assert unchanging(found(folder, run)) == wanted, told
    assert not leftovers(folder), told
    faulty.remove(folder)
