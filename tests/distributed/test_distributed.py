"""Every function of core.distributed: identity in one process; in two, values and gradients of one process on all rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.errors import DataError, Interrupted, MmsslError, RecipeError
from tests.distributed.processes import WORLD, Processes

FIRST = torch.tensor([[1.0, -2.0], [0.5, 3.0], [4.0, 0.25]])
SECOND = torch.tensor([[-1.0, 2.5], [2.0, -3.0], [0.125, 1.0]])
BOTH = torch.cat([FIRST, SECOND])


def mixed(everyone: Tensor, rank: int) -> Tensor:
    """A share of a loss in which every row meets every row, and the ranks differ."""
    own = everyone[3 * rank : 3 * rank + 3]
    return (own @ everyone.T).sin().sum() * (rank + 1)


def facts() -> dict[str, object]:
    return {"world": distributed.world_size(), "rank": distributed.rank(), "main": distributed.is_main()}


def gather_with_gradient(x: Tensor) -> dict[str, Tensor]:
    x.requires_grad_()
    everyone = distributed.gather(x)
    mixed(everyone, distributed.rank()).backward()
    assert x.grad is not None
    return {"value": everyone.detach(), "gradient": x.grad}


def total_with_gradient(x: Tensor) -> dict[str, Tensor]:
    x.requires_grad_()
    before = x.detach().clone()
    everything = distributed.total(x)
    (everything.square() * (distributed.rank() + 1)).sum().backward()
    assert x.grad is not None
    return {"value": everything.detach(), "gradient": x.grad, "moved": (x.detach() - before).abs().max()}


def without_gradient(x: Tensor) -> dict[str, object]:
    x.requires_grad_()
    before = x.detach().clone()
    gathered, summed = distributed.gather_detached(x), distributed.total_detached(x)
    return {
        "gathered": gathered,
        "total": summed,
        "graph": gathered.requires_grad or summed.requires_grad,
        "untouched": bool((x == before).all()),
        "strided": distributed.gather_detached(x.detach().T),
    }


def uneven(x: Tensor) -> Tensor:
    return distributed.gather_uneven(x.requires_grad_() if x.is_floating_point() else x)


def objects(value: object) -> list[object]:
    return distributed.gather_objects(value)


def test_facts(two_processes: Processes) -> None:
    assert two_processes.run(facts) == [
        {"world": WORLD, "rank": 0, "main": True},
        {"world": WORLD, "rank": 1, "main": False},
    ]
    assert facts() == {"world": 1, "rank": 0, "main": True}
    distributed.barrier()
    two_processes.run(distributed.barrier)


def test_gather_has_the_rows_and_the_summed_gradient_of_all(two_processes: Processes) -> None:
    whole = BOTH.clone().requires_grad_()
    torch.stack([mixed(whole, rank) for rank in range(WORLD)]).sum().backward()
    assert whole.grad is not None
    results = two_processes.run(gather_with_gradient, [(FIRST,), (SECOND,)])
    for rank, result in enumerate(results):
        assert torch.equal(result["value"], BOTH)
        torch.testing.assert_close(result["gradient"], whole.grad[3 * rank : 3 * rank + 3])
    # The gradient of the own share alone is another one: dropping the others' cotangents would be seen.
    alone = BOTH.clone().requires_grad_()
    mixed(alone, 0).backward()
    assert alone.grad is not None
    assert not torch.allclose(alone.grad[:3], whole.grad[:3], rtol=1e-2)


def test_total_sums_values_and_cotangents(two_processes: Processes) -> None:
    summed = FIRST + SECOND
    for result in two_processes.run(total_with_gradient, [(FIRST,), (SECOND,)]):
        torch.testing.assert_close(result["value"], summed)
        torch.testing.assert_close(result["gradient"], 2 * summed * (1 + 2))
        assert result["moved"] == 0


def test_detached_collectives_have_no_graph_and_leave_their_input(two_processes: Processes) -> None:
    for result in two_processes.run(without_gradient, [(FIRST,), (SECOND,)]):
        assert torch.equal(result["gathered"], BOTH)
        torch.testing.assert_close(result["total"], FIRST + SECOND)
        assert result["graph"] is False
        assert result["untouched"] is True
        assert torch.equal(result["strided"], torch.cat([FIRST.T, SECOND.T]))


@pytest.mark.parametrize("counts", [(1, 3), (3, 0), (2, 2)])
def test_gather_uneven_keeps_every_row_once(two_processes: Processes, counts: tuple[int, int]) -> None:
    first, second = FIRST[: counts[0]], SECOND[: counts[1]]
    for result in two_processes.run(uneven, [(first,), (second,)]):
        assert torch.equal(result, torch.cat([first, second]))
        assert not result.requires_grad
    integers = [(torch.arange(counts[0]),), (torch.arange(counts[1]) + 10,)]
    for result in two_processes.run(uneven, integers):
        assert torch.equal(result, torch.cat([integers[0][0], integers[1][0]]))


def test_objects(two_processes: Processes) -> None:
    assert two_processes.run(objects, [({"a": 1},), (["b", None],)]) == [[{"a": 1}, ["b", None]]] * 2


def test_one_process_is_the_identity() -> None:
    x = FIRST.clone().requires_grad_()
    assert distributed.gather(x) is x
    assert distributed.total(x) is x
    for detached in (distributed.gather_detached(x), distributed.total_detached(x), distributed.gather_uneven(x)):
        assert torch.equal(detached, FIRST)
        assert not detached.requires_grad
    assert distributed.gather_objects({"a": 1}) == [{"a": 1}]


def followed() -> list[Tensor]:
    mine = torch.arange(6.0).reshape(2, 3) + 10 * distributed.rank()
    tensors = [mine, mine.clone().T, torch.tensor(distributed.rank())]
    distributed.follow_main(tensors)
    return [tensor.contiguous() for tensor in tensors]


def test_all_follow_the_main_process(two_processes: Processes) -> None:
    alone = followed()
    for answer in two_processes.run(followed):
        assert [torch.equal(x, y) for x, y in zip(answer, alone, strict=True)] == [True] * 3


def attempts(failing: list[list[int]]) -> list[str]:
    """Some ranks fail before the first collective of an action, or after its last one; and then all go on together."""
    found = []
    for before, after in zip(failing[::2], failing[1::2], strict=True):

        def action(before: list[int] = before, after: list[int] = after) -> int:
            if distributed.rank() in before:
                raise DataError(f"before, rank {distributed.rank()}")
            values = distributed.gather_objects(distributed.rank())
            distributed.gather_uneven(torch.ones(distributed.rank() + 1))
            if distributed.rank() in after:
                raise ZeroDivisionError(f"after, rank {distributed.rank()}")
            return sum(values)

        found.append(str(distributed.attempt(action)))
    return [*found, str(distributed.gather_objects("together"))]


def test_attempts_end_alike_on_all_processes(two_processes: Processes) -> None:
    failing = [[], [], [1], [], [0], [], [], [1], [0, 1], [], [1], [0]]
    first, second = two_processes.run(attempts, [(failing,), (failing,)], timeout=60)
    assert first == second
    assert first == [
        "1", "before, rank 1", "before, rank 0", "ZeroDivisionError: after, rank 1", "before, rank 0", "before, rank 1",
        "['together', 'together']",
    ]  # fmt: skip


def test_an_attempt_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert distributed.attempt(lambda: 3) == 3
    refused = distributed.attempt(lambda: int("three"))
    assert isinstance(refused, RecipeError)
    assert not caplog.records, "a ValueError says what is wrong"
    failed = distributed.attempt(lambda: 1 // 0)
    assert (type(failed), str(failed)) == (MmsslError, "ZeroDivisionError: integer division or modulo by zero")
    assert caplog.records[0].exc_info, "nobody expected it: its traceback is logged"


def stop(ranks: list[int]) -> str:
    def action() -> None:
        if distributed.rank() in ranks:
            raise Interrupted("at once", 15)
        distributed.gather_objects(None)

    with pytest.raises(Interrupted) as stopped:
        distributed.attempt(action)
    return f"{stopped.value} {stopped.value.exit_code}"


def test_a_stop_is_no_failure(two_processes: Processes) -> None:
    assert two_processes.run(stop, [([1],), ([1],)], timeout=60) == ["stopped by SIGTERM at once 143"] * 2
