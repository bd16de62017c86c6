from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ssl.modules.queue import enqueue, random_queue


def test_it_starts_with_unit_columns():
    queue = random_queue(16, 40)
    assert queue.shape == (16, 40)
    torch.testing.assert_close(queue.square().sum(dim=0), torch.ones(40))
    assert torch.linalg.matrix_rank(queue) == 16


@settings(deadline=None)
@given(size=st.integers(1, 12), batches=st.lists(st.integers(1, 12), max_size=12))
def test_it_holds_the_last_keys_in_order_of_arrival(size, batches):
    """A deque with a bounded length says what a ring buffer must hold, whatever the batch sizes."""
    queue, position = torch.full((2, size), -1.0), torch.zeros((), dtype=torch.int64)
    expected = deque([-1.0] * size, maxlen=size)
    count = 0
    for batch_size in (min(batch_size, size) for batch_size in batches):
        numbers = [float(count + i) for i in range(batch_size)]
        count += batch_size
        enqueue(queue, position, torch.tensor([[number, -number] for number in numbers]))
        expected.extend(numbers)
        oldest_first = queue.roll(-int(position), dims=1)
        assert oldest_first[0].tolist() == list(expected)
        assert 0 <= int(position) < size


def test_writing_happens_in_place_and_wraps():
    queue, position = torch.zeros(1, 5), torch.tensor(3)
    address = queue.data_ptr()
    columns = enqueue(queue, position, torch.tensor([[1.0], [2.0], [3.0]]))
    assert columns.tolist() == [3, 4, 0]
    assert queue.tolist() == [[3.0, 0.0, 0.0, 1.0, 2.0]]
    assert int(position) == 1 and queue.data_ptr() == address


def test_keys_of_another_precision_are_converted():
    queue, position = torch.zeros(2, 4), torch.tensor(0)
    enqueue(queue, position, torch.ones(1, 2, dtype=torch.bfloat16))
    assert queue.dtype == torch.float32 and queue[:, 0].tolist() == [1.0, 1.0]


def test_more_keys_than_places_are_refused_and_nothing_is_written():
    queue, position = torch.zeros(2, 16), torch.tensor(0)
    with pytest.raises(
        ValueError, match=r"The queue holds 16 keys but one step brings 64 \(batch size times processes"
    ):
        enqueue(queue, position, torch.ones(64, 2))
    assert not queue.any() and int(position) == 0
