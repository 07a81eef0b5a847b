"""Write docs/reference/gateway-settings.md from the settings themselves; a test holds the two together."""

from __future__ import annotations

from pathlib import Path

from thumbtune.gateway.settings import GatewaySettings

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "gateway-settings.md"

HEAD = """# Settings of the gateway

Given as an option of `thumbtune serve` where it has one (`thumbtune serve --help`), as `THUMBTUNE_NAME` in the
environment, or by name in a TOML file (`--config gateway.toml`), in this order. Lists are JSON in the environment:
`THUMBTUNE_ALLOWED_ORIGINS='["https://shop.example"]'`. `thumbtune serve --show-settings` prints what holds.

| setting | default | |
| --- | --- | --- |
"""


def render() -> str:
    """The page."""
    rows = []
    for name, field in GatewaySettings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default is None else f"`{default}`" if default != [] else "none"
        rows.append(f"| `{name}` | {shown} | {field.description} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
