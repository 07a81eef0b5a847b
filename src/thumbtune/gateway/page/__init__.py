"""The gateway's page: chat with thumbs, votes, models, canary, loop, and how busy it is now; in English and Turkish.

Gradio is heavy: it is imported when the page is mounted, never by importing this package.
"""

from __future__ import annotations

from thumbtune.gateway.page.mount import mount_page
from thumbtune.gateway.page.shield import PAGE_CSP

__all__ = ["PAGE_CSP", "mount_page"]
