"""The numbers of Koo, Chae and Lee 2023 (accuracy in %, CIFAR-10 test set, ResNet-56), to stand beside ours."""

from purifiers.attacks import BIM, CW, FGSM, PGD, Attack, AutoAttack

_ATTACKS: tuple[Attack, ...] = (
    PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=20),  # the paper's PGD8
    PGD(epsilon=16 / 255, step_size=2 / 255, num_steps=20),  # and PGD16
    FGSM(epsilon=8 / 255),
    BIM(epsilon=8 / 255, step_size=2 / 255, num_steps=20),
    CW(num_steps=40, learning_rate=0.01),
    AutoAttack(epsilon=8 / 255),
)
ATTACKS = {attack.title: attack for attack in _ATTACKS}
"""The attacks of section 4.1."""

CLEAN_UNDEFENDED = 89.46
"""Table 1's row "Original", the same in its three columns: the classifier without a purifier."""

TABLE_1: dict[str, dict[str, float]] = {
    "paper": dict(zip(ATTACKS, (40.20, 33.57, 40.12, 38.37, 56.87, 46.91), strict=True)),
    "paper's NRP": dict(zip(ATTACKS, (35.07, 35.57, 39.79, 31.96, 57.24, 12.34), strict=True)),
    "paper's SOAP": dict(zip(ATTACKS, (39.14, 35.65, 37.43, 40.18, 79.22, 41.03), strict=True)),
}

TABLE_2: dict[str, dict[str, float]] = {
    "teacher_at": dict(zip(ATTACKS, (34.16, 28.01, 38.07, 33.29, 56.54, 43.20), strict=True)),
    "student_at": dict(zip(ATTACKS, (35.46, 28.70, 38.42, 34.92, 56.32, 42.77), strict=True)),
    "student_nt": dict(zip(ATTACKS, (35.77, 29.47, 36.93, 34.88, 57.90, 40.50), strict=True)),
    "student": TABLE_1["paper"],
}

ORIGINALS = {
    "nrp": "23 blocks, 64 features, growth 32 (16.55 million parameters); small variant: 23 residual blocks (1.70 million)",
    "soap": "ResNet-18 with 16, 32 and 64 channels, or WRN-28-10",
}
"""The sizes in the papers of the baselines (Naseer et al. 2020; Shi et al. 2021), by kind."""
