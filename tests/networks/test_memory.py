import copy

import pytest
import torch
from torch.nn.functional import normalize

from superself.networks import FeatureQueue, MemoryBank


def vectors(n, width=4, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def test_queue_holds_the_last_embeddings_in_turn():
    queue, given = FeatureQueue(5, 4), vectors(12)
    expected = list(queue.features.clone())
    pointer = 0
    for batch in given.split(3):  # 3 does not divide 5: the second batch goes around the end
        queue.enqueue(batch)
        for row in normalize(batch, dim=1):
            expected[pointer % 5] = row
            pointer += 1
    assert torch.allclose(queue.features, torch.stack(expected))
    assert queue.enqueued.item() == 12


def test_queue_of_fewer_rows_than_a_batch_keeps_the_newest():
    queue, given = FeatureQueue(3, 4), vectors(8)
    queue.enqueue(given)
    assert {tuple(r) for r in queue.features.tolist()} == {tuple(r) for r in normalize(given[-3:], dim=1).tolist()}


def test_queue_knows_the_rows_of_an_image():
    queue = FeatureQueue(5, 4)
    queue.enqueue(vectors(3), torch.tensor([7, 8, 9]))
    queue.enqueue(vectors(3), torch.tensor([8, 7, 6]))  # the last one takes the place of the first
    assert queue.same_image(torch.tensor([7, 8, 5])).tolist() == [
        [False, False, False, False, True],
        [False, True, False, True, False],
        [False] * 5,
    ]
    queue.enqueue(vectors(2))  # of no known image
    assert queue.same_image(torch.tensor([6, 8, 9])).sum(1).tolist() == [1, 1, 0]


def test_queue_and_bank_hold_rows_of_unit_length_from_the_start():
    queue, bank = FeatureQueue(7, 4), MemoryBank(7, 4)
    queue.enqueue(100 * vectors(4))
    bank.remember(100 * vectors(2), torch.tensor([1, 5]))
    bank.commit()
    for rows in (queue.features, bank.features):
        assert torch.allclose(rows.norm(dim=1), torch.ones(7), atol=1e-6)


@pytest.mark.parametrize("make", [FeatureQueue, MemoryBank])
def test_state_travels_with_the_checkpoint_and_gets_no_gradient(make):
    module, other = make(7, 4), make(7, 4)
    if make is FeatureQueue:
        module.enqueue(vectors(3))
    other.load_state_dict(module.state_dict())
    assert torch.equal(module.features, other.features) and not list(module.parameters())
    if make is FeatureQueue:
        assert other.enqueued.item() == 3


def test_enqueueing_and_committing_detach():
    queue, bank, given = FeatureQueue(7, 4), MemoryBank(7, 4), vectors(3).requires_grad_()
    queue.enqueue(given)
    bank.remember(given, torch.arange(3))
    bank.commit()
    assert not queue.features.requires_grad and not bank.features.requires_grad


def test_bank_mixes_old_and_new_by_hand():
    bank = MemoryBank(2, 2, momentum=0.25)
    bank.features.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    bank.remember(torch.tensor([[0.0, 5.0]]), torch.tensor([0]))
    assert torch.equal(bank.features[0], torch.tensor([1.0, 0.0]))  # nothing is written before the commit
    bank.commit()
    length = (0.25**2 + 0.75**2) ** 0.5
    assert torch.allclose(bank.features, torch.tensor([[0.25 / length, 0.75 / length], [0.0, 1.0]]))
    bank.commit()  # a batch is written once
    assert torch.allclose(bank.features[0], torch.tensor([0.25 / length, 0.75 / length]))


def test_bank_marks_rows_of_the_same_image_among_the_negatives():
    bank, generator = MemoryBank(6, 4), torch.Generator().manual_seed(0)
    places = torch.tensor([4, 0])
    rows, same = bank.negatives(places, None, generator)
    assert torch.equal(rows, bank.features) and torch.equal(same.nonzero(), torch.tensor([[0, 4], [1, 0]]))
    rows, same = bank.negatives(places, 5, generator)
    assert rows.shape == (5, 4) and same.shape == (2, 5)
    for i, place in enumerate(places):
        assert torch.equal(same[i], (rows == bank.features[place]).all(1))
    assert bank.negatives(places, 6, generator)[0].shape == (6, 4)


def test_bank_counts_the_rows_that_an_image_is_found_among():
    bank = MemoryBank(6, 4)
    assert [bank.candidates(count) for count in (None, 1, 4, 5, 6, 100)] == [6, 2, 5, 6, 6, 6]


def test_every_row_is_drawn_as_a_negative():
    bank, generator = MemoryBank(9, 4), torch.Generator().manual_seed(0)
    drawn = torch.cat([bank.negatives(torch.tensor([0]), 3, generator)[0] for _ in range(100)])
    assert len(drawn.unique(dim=0)) == 9


def test_empty_queues_and_impossible_momenta_are_refused():
    with pytest.raises(
        ValueError,
        match=r"size must be an integer of at least 1, got 0 \(it is the number of embeddings in the queue\)",
    ):
        FeatureQueue(0, 4)
    with pytest.raises(
        ValueError,
        match=r"momentum must be a number in \[0, 1\), got 1 \(it is the fraction of a bank's row that is kept\)",
    ):
        MemoryBank(3, 4, momentum=1)


def test_queue_changes_only_at_the_commit_and_once():
    queue, direct, given = FeatureQueue(5, 4), FeatureQueue(5, 4), vectors(3)
    direct.load_state_dict(queue.state_dict())
    before = {name: value.clone() for name, value in queue.state_dict().items()}
    queue.remember(given.requires_grad_(), torch.tensor([7, 8, 9]))
    assert all(torch.equal(value, before[name]) for name, value in queue.state_dict().items())
    queue.commit()
    queue.commit()
    direct.enqueue(given, torch.tensor([7, 8, 9]))
    assert all(torch.equal(value, direct.state_dict()[name]) for name, value in queue.state_dict().items())
    queue.remember(vectors(2))
    queue.commit()
    assert queue.places.tolist() == [7, 8, 9, -1, -1]


@pytest.mark.parametrize("memory", [FeatureQueue(9, 4), MemoryBank(9, 4)])
def test_what_is_remembered_without_a_commit_is_replaced(memory):
    """A loss that is computed only to be looked at, with no step after it, leaves nothing behind."""
    other = copy.deepcopy(memory)
    memory.remember(vectors(3, seed=1), torch.arange(3))
    for each in (memory, other):
        each.remember(vectors(2), torch.tensor([5, 6]))
        each.commit()
    assert torch.equal(memory.features, other.features)


def test_the_filled_fraction_of_a_queue_rises_to_one_without_leaving_the_device():
    queue, found = FeatureQueue(5, 4), []
    for _ in range(4):
        found.append(queue.filled)
        queue.enqueue(vectors(2))
    assert [round(value.item(), 6) for value in found] == [0.0, 0.4, 0.8, 1.0]
    assert all(isinstance(value, torch.Tensor) and value.ndim == 0 for value in found)
    queue.enqueue(vectors(8))
    assert queue.filled == 1


def test_embeddings_and_places_in_the_wrong_order_are_named():
    for memory in (FeatureQueue(5, 4), MemoryBank(5, 4)):
        with pytest.raises(
            TypeError, match=r"places have type torch.float32 .* pass remember\(embeddings \(B, D\), places"
        ):
            memory.remember(torch.arange(3), vectors(3))


def test_a_bank_can_be_filled_with_one_row_for_each_image():
    bank, given = MemoryBank(6, 4), vectors(6)
    bank.fill(given)
    assert torch.allclose(bank.features, normalize(given, dim=1))
    with pytest.raises(
        ValueError, match=r"features \(5, 4\) do not match the bank's shape \(6, 4\); pass one row for each image"
    ):
        bank.fill(vectors(5))


@pytest.mark.parametrize("whole", [FeatureQueue(9, 4), MemoryBank(9, 4)], ids=["queue", "bank"])
def test_parts_of_a_batch_are_committed_like_the_whole(whole):
    parts = copy.deepcopy(whole)
    given, places = vectors(4), torch.tensor([2, 0, 5, 1])
    whole.remember(given, places)
    pending = []
    for rows in (slice(0, 2), slice(2, 4)):
        parts.remember(given[rows], places[rows])
        pending.append(parts.pending)
    parts.remember_parts(pending)
    for each in (whole, parts):
        each.commit()
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffer, dict(parts.named_buffers())[name]), name


def test_parts_without_places_or_without_embeddings_are_committed_too():
    queue = FeatureQueue(4, 4)
    queue.remember_parts([None, None])
    queue.commit()
    assert queue.enqueued == 0
    queue.remember_parts([(vectors(1), None), (vectors(2), None)])
    queue.commit()
    assert queue.enqueued == 3 and (queue.places == -1).all()
