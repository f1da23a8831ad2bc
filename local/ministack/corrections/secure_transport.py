"""Requests count as encrypted: loopback stands for TLS here, and a policy that denies plain HTTP must not deny all."""

from __future__ import annotations

from ministack import app


def apply() -> None:
    """Wraps how MiniStack notes where a request comes from (`aws:SourceIp`, `aws:SecureTransport`)."""
    original = app.pin_request_origin

    def pin(source_ip: str, _secure: bool) -> None:
        original(source_ip, True)

    app.pin_request_origin = pin
