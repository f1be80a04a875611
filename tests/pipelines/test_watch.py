"""What workers tell the waiting command: only failures of the group that is at work count."""

from pipelines.watch import Board


def test_the_worker_of_a_lost_node_does_not_end_the_run_of_those_that_took_over():
    board = Board()
    board.begin("first")
    board.begin("second")
    board.fail("its checkpoint was cleared away", "first")
    assert board.drain().error == ""
    board.fail("the disk is full", "second")
    board.fail("and therefore this", "second")
    assert board.drain().error == "the disk is full"


def test_what_a_restart_mended_is_forgotten():
    board = Board()
    board.begin("first")
    board.fail("worker 0 cannot read", "first", stopped=True)
    board.begin("second")
    assert board.drain()[2:] == ("", False)


def test_ranks_that_know_no_attempt_are_heard():
    board = Board()
    board.begin("first")
    board.fail("worker 1: a shard is damaged")
    assert board.drain().error == "worker 1: a shard is damaged"
