"""Whom a silo's connections trust: the pinned authority of its coordinator, over TLS 1.3, and nobody else."""

from __future__ import annotations

import ssl


def trust_of(authority: str) -> ssl.SSLContext:
    """Return a TLS context of a client.

    Args:
        authority: certificate of the authority, PEM.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.hostname_checks_common_name = False  # names are the alternative names alone (RFC 9525)
    context.load_verify_locations(cadata=authority)
    return context
