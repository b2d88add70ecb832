"""The page of a forecast: the verdict, every arm's errors, and what some forecasts look like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osteon.report.page import Report, Verdict
from osteon.report.svg import Series

#: Arms drawn over each example, least error first, beside what came.
SHOWN = 4


def write_forecast_report(result: Mapping[str, Any], path: Path) -> Path:
    """Write the page of what :func:`osteon.forecast` returned.

    Args:
        result: its result.
        path: the ``.html`` file.
    """
    stated = result["verdict"]
    numbers = stated["numbers"]
    report = Report(f"Forecasts of {result['horizon']} steps", Verdict(stated["answer"], stated["sentence"], {
        "Error saved": (f"{100 * numbers['mean']:+.1f} %",
                        f"[{100 * numbers['low']:+.1f}, {100 * numbers['high']:+.1f}] {numbers['pretrained']} against "
                        f"{numbers['control']}")}))
    arms = sorted(result["arms"], key=lambda arm: arm["mse"])
    report.table("Errors on the test part", ["arm", "kind", "MSE", "95 %", "MAE", "95 %"], [
        [a["name"], a["kind"], f"{a['mse']:.3f}", f"[{a['mse_low']:.3f}, {a['mse_high']:.3f}]", f"{a['mae']:.3f}",
         f"[{a['mae_low']:.3f}, {a['mae_high']:.3f}]"] for a in arms],
        note="Values are standardised by the training part. Intervals are bootstrapped over stretches of time.")
    report.table("Mean squared error of each channel", ["arm", *result["channels"]], [
        [a["name"], *(f"{a['channel_mse'][c]:.3f}" for c in result["channels"])] for a in arms])
    for example in result["examples"]:
        past, future = example["context"], example["future"]
        ahead = [float(i) for i in range(len(future))]
        lines = [Series("what was known", [float(i - len(past)) for i in range(len(past))], past, control=True),
                 Series("what came", ahead, future)]
        lines += [Series(a["name"], ahead, example["forecasts"][a["name"]]) for a in arms[:SHOWN]]
        report.curves(f"{example['channel']}, from row {example['row']:,}", lines, "steps ahead", "standardised value")
    report.text("What was done", list(result["notes"]))
    return report.save(path)
