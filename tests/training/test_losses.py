"""Equations 2 to 6 against values worked out in float64 NumPy, from the formulas alone."""

import math

import numpy as np
import pytest
import torch

from purifiers.recipes.training_settings import Outputs
from purifiers.training.losses import at_teacher_loss, distillation_loss, reconstruction_loss, student_loss

N, C, H, W, CLASSES = 4, 3, 5, 6, 7


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shape = (N, C, H, W)
    images = {name: random.random(shape) for name in ("x", "purified", "teacher_at", "teacher_nt")}
    logits = {name: random.normal(size=(N, CLASSES)) * 3 for name in ("p", "adv")}
    return images | logits | {"labels": random.integers(0, CLASSES, N)}


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


def kl_of_softmax(teacher: np.ndarray, student: np.ndarray) -> float:
    total = 0.0
    for t, s in zip(teacher.reshape(N, -1), student.reshape(N, -1), strict=True):
        p, q = np.exp(t) / np.exp(t).sum(), np.exp(s) / np.exp(s).sum()
        total += sum(p[i] * math.log(p[i] / q[i]) for i in range(len(p)))
    return total / N


def mse(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).sum() / a.size)


@pytest.mark.parametrize("weight", [1.0, 0.0, 2.5])
def test_equation_2(arrays: dict[str, np.ndarray], weight: float) -> None:
    p_out = [arrays["p"][i, arrays["labels"][i]] for i in range(N)]
    adv_out = [arrays["adv"][i, arrays["labels"][i]] for i in range(N)]
    guidance = sum(-math.log(1 / (1 + math.exp(-(p - a)))) for p, a in zip(p_out, adv_out, strict=True)) / N
    names = ("purified", "x", "p", "adv", "labels")
    first, second = at_teacher_loss(*(tensor(arrays[name]) for name in names), adversarial_weight=weight)
    assert first.item() == pytest.approx(mse(arrays["purified"], arrays["x"]), rel=1e-12)
    assert second.item() == pytest.approx(weight * guidance, rel=1e-12)


@pytest.mark.parametrize("outputs", ["largest", "all", "probabilities"])
def test_equation_2_without_labels(arrays: dict[str, np.ndarray], outputs: Outputs) -> None:
    def read(logits: np.ndarray) -> list[list[float]]:
        if outputs == "largest":
            return [[max(row)] for row in logits]
        return [[*row] if outputs == "all" else [*(np.exp(row) / np.exp(row).sum())] for row in logits]

    pairs = [
        (p, a) for ps, advs in zip(read(arrays["p"]), read(arrays["adv"]), strict=True) for p, a in zip(ps, advs, strict=True)
    ]
    expected = sum(-math.log(1 / (1 + math.exp(-(p - a)))) for p, a in pairs) / len(pairs)
    labels = torch.full((N,), -1)  # are not looked at
    images = (tensor(arrays["purified"]), tensor(arrays["x"]), tensor(arrays["p"]), tensor(arrays["adv"]))
    _, second = at_teacher_loss(*images, labels, outputs=outputs)
    assert second.item() == pytest.approx(expected, rel=1e-12)


def test_equation_2_is_finite_where_the_sigmoid_underflows() -> None:
    logits = torch.tensor([[-200.0, 0.0]])
    image = torch.zeros(1, 3, 2, 2)
    _, guidance = at_teacher_loss(image, image, logits, -logits, torch.tensor([0]))
    assert guidance.item() == 400.0


def test_equations_3_and_4(arrays: dict[str, np.ndarray]) -> None:
    value = reconstruction_loss(tensor(arrays["purified"]), tensor(arrays["x"]))
    assert value.item() == pytest.approx(mse(arrays["purified"], arrays["x"]), rel=1e-12)


@pytest.mark.parametrize("teachers", [["teacher_at"], ["teacher_at", "teacher_nt"]])
def test_equation_5(arrays: dict[str, np.ndarray], teachers: list[str]) -> None:
    student = arrays["purified"]
    expected = [kl_of_softmax(arrays[name], student) + mse(arrays[name], student) for name in teachers]
    value = distillation_loss(tensor(student), [tensor(arrays[name]) for name in teachers])
    assert value.item() == pytest.approx(sum(expected) / len(teachers), rel=1e-12)


def test_equation_5_over_colours(arrays: dict[str, np.ndarray]) -> None:
    student, teacher = arrays["purified"], arrays["teacher_nt"]
    pixels = [teacher.transpose(0, 2, 3, 1).reshape(-1, C), student.transpose(0, 2, 3, 1).reshape(-1, C)]
    p, q = (np.exp(values) / np.exp(values).sum(1, keepdims=True) for values in pixels)
    expected = (p * np.log(p / q)).sum() / N + mse(teacher, student)
    value = distillation_loss(tensor(student), [tensor(teacher)], softmax_over="colours")
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_equation_5_is_zero_for_a_perfect_student_only(arrays: dict[str, np.ndarray]) -> None:
    teacher = tensor(arrays["teacher_at"])
    assert distillation_loss(teacher, [teacher, teacher]).item() == 0
    assert distillation_loss(teacher + 0.01, [teacher]).item() == pytest.approx(1e-4)  # the softmax sees no shift


def test_equation_6() -> None:
    assert student_loss(torch.tensor(3.0), torch.tensor(5.0)).item() == 4.0
    assert student_loss(torch.tensor(3.0), torch.tensor(5.0), beta=2.0, gamma=0.1).item() == 6.5


def test_gradients_are_those_of_the_formulas(arrays: dict[str, np.ndarray]) -> None:
    student = tensor(arrays["purified"]).requires_grad_(True)
    teacher, images = tensor(arrays["teacher_at"]), tensor(arrays["x"])
    labels = tensor(arrays["labels"])

    def total(student: torch.Tensor) -> torch.Tensor:
        logits = student.flatten(1)[:, :CLASSES]
        first, second = at_teacher_loss(student, images, logits, tensor(arrays["adv"]), labels)
        return first + second + distillation_loss(student, [teacher])

    assert torch.autograd.gradcheck(total, student)
