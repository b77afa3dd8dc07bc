"""What `gpupipe optimize` found, as one HTML page that needs nothing from outside, and as lines."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape
from typing import Any

from gpupipe.doctor.optimised import AMPLIFIED, Report
from gpupipe.media.images import png
from gpupipe.report.style import STYLE

PICTURES = """
.row { display: flex; flex-wrap: wrap; gap: .8rem; max-width: none }
.row figure { margin: 0; max-width: 100% }
img { max-width: 100%; height: auto; image-rendering: pixelated; border: 1px solid var(--line) }
"""


def html_page(report: Report) -> str:
    """The page."""
    values = report.values
    title = f"gpupipe optimize: {values['precision']}"
    parts = [f"<p>{escape(values['model'])}, judged by {escape(values['about']['judged by'])}.</p>", _verdict(values)]
    for what, pictures in report.pictures.items():
        names = ("original", values["precision"], f"difference, {AMPLIFIED} times")
        shown = "".join(
            f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{_coded(picture)}">'
            f"<figcaption>{escape(name)}</figcaption></figure>"
            for name, picture in zip(names, pictures, strict=True)
        )
        parts.append(f'<h2>{escape(what[:1].upper() + what[1:])}</h2><div class="row">{shown}</div>')
    for heading, rows in tables(values).items():
        cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
        parts.append(
            f'<h2>{escape(heading)}</h2><div class="scroll"><table class="facts"><tbody>{cells}</tbody></table></div>'
        )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}{PICTURES}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def lines(report: Report) -> list[str]:
    """The same for a terminal, without the pictures."""
    return [f"  {name}: {value}" for rows in tables(report.values).values() for name, value in rows]


def tables(values: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """What was measured, as names and values under headings."""
    return {
        "What it draws": list(_quality(values)),
        "What it costs": list(_cost(values)),
        "How it was made": [(name.replace("_", " "), _shown(value)) for name, value in values["about"].items()],
    }


def _verdict(values: dict[str, Any]) -> str:
    floor = (
        f"{values['floor']['mean_db']:.0f} dB on average and {values['floor']['worst_db']:.0f} dB in the worst frame"
    )
    if values["quality"]["passes"]:
        return f'<p class="good">Above the floor: {floor} in the mouth region.</p>'
    return f'<p class="bad">Below the floor: {floor} in the mouth region are wanted.</p>'


def _quality(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    found = values["quality"]
    x1, y1, x2, y2 = found["region"]
    yield "mouth region", f"x {x1} to {x2}, y {y1} to {y2} of what the model draws"
    yield "PSNR there", f"{found['mouth_psnr_mean']:.2f} dB, worst frame {found['mouth_psnr_worst']:.2f} dB"
    yield "SSIM there", f"{found['mouth_ssim_mean']:.4f}, worst frame {found['mouth_ssim_worst']:.4f}"
    yield "PSNR of all that it draws", f"{found['roi_psnr_mean']:.2f} dB"
    yield "changed pixels of that", f"{100 * found['changed']:.2f} %, by {found['largest']} levels at most"
    if "worst_output_frame" in found:
        yield "worst output frame", str(found["worst_output_frame"])
    finished = values.get("finished")
    if finished:
        yield "PSNR of finished frames", f"{finished['psnr_mean']:.2f} dB, worst {finished['psnr_worst']:.2f} dB"
        yield "SSIM of finished frames", f"{finished['ssim_mean']:.5f}, worst {finished['ssim_worst']:.5f}"
        share = 100 * finished["changed"]
        yield "changed pixels of finished frames", f"{share:.2f} %, by {finished['largest']} levels at most"


def _cost(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    sizes, ms = values["bytes"], values["ms_a_frame"]
    yield "size", f"{sizes['optimised'] / 1e6:.1f} MB, the original {sizes['original'] / 1e6:.1f} MB"
    yield (
        "a frame",
        f"{ms['optimised']:.1f} ms, the original {ms['original']:.1f} ms: {ms['ratio']:.2f} times as fast "
        f"({values['threads']} threads of {values['cpu']})",
    )


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _coded(picture: Any) -> str:
    return base64.b64encode(png(picture)).decode("ascii")
