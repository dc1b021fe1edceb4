"""Draws docs/images/privacy.svg, the figure of docs/privacy.md:  python docs/privacy_figure.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from privfm.dp.accounting import epsilon_over_steps
from privfm.dp.calibration import calibrate_noise, cap_for_plan
from privfm.dp.events import SampledGaussian
from privfm.dp.forecast import DOUBTFUL_FROM, NO_GO_FROM, forecast
from privfm.dp.renyi import composed_rdp, epsilon_from_rdp

TARGET, DELTA, RATE, ROUNDS = 8.0, 1e-5, 0.25, 100
INK, BLUE, RED, GREY = "#222222", "#1f5fa8", "#b3261e", "#8a8a8a"


def spending(axes: Axes) -> None:
    """Epsilon over rounds: the tight account, and the one that the lifetime cap keeps."""
    noise = calibrate_noise(epsilon=TARGET, delta=DELTA, sample_rate=RATE, steps=ROUNDS)
    cap = cap_for_plan(epsilon=TARGET, delta=DELTA, sample_rate=RATE, steps=ROUNDS)
    event = SampledGaussian(RATE, noise, 1)
    rounds = list(range(0, 121, 5))
    tight = epsilon_over_steps(event, rounds, DELTA)
    kept = [
        epsilon_from_rdp(cap.order, float(composed_rdp([event.repeated(n)], [cap.order])[0]), DELTA) for n in rounds
    ]
    refused = cap.steps_that_fit(event)
    axes.plot(rounds, tight, color=BLUE)
    axes.plot(rounds, kept, color=INK, dashes=(4, 2))
    axes.axhline(TARGET, color=RED, linewidth=1)
    axes.axvline(refused, color=GREY, linewidth=1, dashes=(1, 2))
    axes.text(2, TARGET + 0.2, "allowed", color=RED)
    axes.text(24, 2.4, "spent: the tight account (PLD)", color=BLUE)
    axes.text(3, 7.0, "spent: as the cap counts (RDP)", color=INK)
    axes.text(refused + 1.5, 0.3, f"a cap stops\nafter {refused} rounds", color=GREY, va="bottom")
    axes.set(xlabel="rounds of one step", ylabel="epsilon", xlim=(0, 120), ylim=(0, 10))
    axes.set_title(f"What a run costs (noise {noise:.2f}, rate {RATE})", loc="left")


def patience(axes: Axes) -> None:
    """Noise over the longest possible signal, by patients and by how much of the model is trained."""
    patients = [round(30 * 10 ** (k / 8)) for k in range(29)]
    noise = calibrate_noise(epsilon=TARGET, delta=DELTA, sample_rate=RATE, steps=ROUNDS)
    for parameters, name in ((5_500_000, "5.5 million trained parameters"), (100_000, "100,000"), (5_000, "5,000")):
        ratios = [
            forecast(
                parameters=parameters,
                nominal_units=n,
                sample_rate=RATE,
                noise_multiplier=noise,
                steps=ROUNDS,
                hospitals=5,
            ).noise_to_signal
            for n in patients
        ]
        axes.loglog(patients, ratios, color=BLUE)
        axes.text(patients[0] * 1.1, ratios[0] * 1.25, name, color=BLUE, va="bottom")
    axes.axhspan(NO_GO_FROM, 1e3, color=RED, alpha=0.10, linewidth=0)
    axes.axhspan(DOUBTFUL_FROM, NO_GO_FROM, color=GREY, alpha=0.15, linewidth=0)
    for height, word in ((200, "no-go"), (0.5, "doubtful"), (0.05, "go")):
        axes.text(85_000, height, word, color=INK, ha="right")
    axes.set(xlabel="patients at each of five hospitals", ylabel="noise over longest signal")
    axes.set(xlim=(30, 95_000), ylim=(0.005, 500))
    axes.set_title(f"What patients buy (epsilon {TARGET:g}, {ROUNDS} rounds)", loc="left")


def main() -> None:
    mpl.rcParams.update({"font.size": 8, "axes.titlesize": 9, "font.family": "sans-serif"})
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    mpl.rcParams.update({"svg.hashsalt": "privfm", "svg.fonttype": "none"})
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    spending(left)
    patience(right)
    path = Path(__file__).parent / "images" / "privacy.svg"
    figure.savefig(path, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
