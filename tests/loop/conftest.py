"""The loop's tests use the stores that the store's tests use."""

from __future__ import annotations

from store.conftest import store, store_url

__all__ = ["store", "store_url"]
