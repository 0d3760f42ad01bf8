import torch

from benchmarks.runs.memory import peak_bytes

CPU = torch.device("cpu")
MEGABYTE = 1 << 20


def zeros(megabytes: int) -> torch.Tensor:
    return torch.zeros(megabytes, MEGABYTE, dtype=torch.uint8)


def test_what_is_held_at_once_counts_and_not_what_was_given_back() -> None:
    def task() -> None:
        zeros(8)
        first, second = zeros(3), zeros(2)
        del first, second
        zeros(4)

    assert peak_bytes(task, CPU) == 8 * MEGABYTE


def test_tensors_add_up_while_they_are_held() -> None:
    def task() -> torch.Tensor:
        first, second = zeros(3), zeros(4)
        zeros(2)
        return torch.cat([first, second])

    # The two, and the third or the copy of both.
    assert peak_bytes(task, CPU) == 14 * MEGABYTE


def test_what_was_held_before_does_not_count() -> None:
    held = zeros(50)
    assert peak_bytes(lambda: zeros(1), CPU) == MEGABYTE
    assert held.shape[0] == 50


def test_a_backward_pass_holds_more_than_a_forward_pass() -> None:
    network = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)))
    image = torch.zeros(1, 8, 64, 64)

    def forward() -> None:
        with torch.no_grad():
            network(image)

    assert peak_bytes(lambda: network(image).sum().backward(), CPU) > 2 * peak_bytes(forward, CPU)
