"""How slots of the cache are shared out."""

from medjax.infer.slots import Waiting, cache_room, rooms, slots, slots_for


def test_rooms_and_slots_are_rounded_up():
    assert [cache_room(n) for n in (1, 128, 129, 1000)] == [128, 128, 256, 1024]
    assert [slots(6, shards) for shards in (1, 4, 8)] == [6, 8, 8]
    assert [slots_for(n, 64, 4) for n in (1, 3, 9, 40, 1000)] == [4, 4, 16, 64, 64]


def test_groups_have_room_for_the_longest_of_their_class():
    tokens = sorted(range(10, 1290, 10), reverse=True)  # 128 sequences
    assert rooms(tokens, 64, 1) == (1280, 1024, 640, 384)
    assert rooms(tokens, 64, 16) == (1280, 1024, 640, 384)
    assert rooms(tokens, 64, 32) == (1280, 640)  # 64 slots are 2 groups of 32
    assert rooms(tokens, 6, 1) == (1280, 640)
    assert rooms(tokens, 5, 1) == (1280,)


def test_no_groups_where_they_save_little_or_prompts_are_few():
    assert rooms([600] * 128, 64, 1) == (640,)
    assert rooms([1200] * 80 + [1000] * 48, 64, 1) == (1280,)  # of 1,280 a quarter saves 128: less than a tenth
    assert rooms([1000, *range(990, 0, -33)][:31], 64, 1) == (1024,)


def test_a_slot_takes_its_own_class_and_then_shorter_prompts():
    waiting = Waiting([7, 3, 9, 1, 5, 8], 3)  # classes 7 3, 9 1, 5 8
    assert waiting.takeable([1, 0, 0]) == 1
    assert waiting.takeable([9, 9, 9]) == 6
    assert waiting.takeable([0, 0, 9]) == 2
    assert waiting.takeable([3, 0, 2]) == 5  # two of its own, and one of the next class
    assert [waiting.take(2) for _ in range(3)] == [5, 8, None]
    assert [waiting.take(1), waiting.take(0), waiting.take(0), waiting.take(0), waiting.take(0)] == [9, 7, 3, 1, None]
    assert len(waiting) == 0
