"""Ray: version, the cluster that would be used, authentication."""

from __future__ import annotations

from ttsvar_ray.cli.doctor.finding import Finding, Mark

AREA = "ray"


def check_ray() -> list[Finding]:
    """Say which cluster a job would use, and whether it answers."""
    from ttsvar_ray.cluster.inspection import inspect_ray

    facts = inspect_ray()
    return [
        _cluster(facts.version, facts.address, facts.problem),
        _authentication(facts.address, facts.auth_mode, facts.has_token_file),
    ]


def _cluster(version: str, address: str | None, problem: str | None) -> Finding:
    if address is None:
        text = f"ray {version}; RAY_ADDRESS is not set: a job starts a cluster of this machine"
        return Finding(area=AREA, name="cluster", mark=Mark.OK, text=text)
    if problem is None:
        text = f"ray {version}; RAY_ADDRESS {address}"
        return Finding(area=AREA, name="cluster", mark=Mark.OK, text=text)
    return Finding(
        area=AREA,
        name="cluster",
        mark=Mark.WARN,
        text=f"ray {version}; nothing answers at RAY_ADDRESS {address} ({problem}): jobs will not start",
        command="ray start --head    # or: unset RAY_ADDRESS",
    )


def _authentication(address: str | None, mode: str | None, has_token: bool) -> Finding:
    """Ray turns tokens on by itself where it finds one; a process that differs from its cluster fails with
    messages that do not say so."""
    if mode is not None:
        text = f"RAY_AUTH_MODE={mode}; every process of the cluster must have the same"
        bad = mode == "token" and not has_token
        if bad:
            text = "RAY_AUTH_MODE=token, but there is no token: set RAY_AUTH_TOKEN or ~/.ray/auth_token"
        return Finding(area=AREA, name="authentication", mark=Mark.WARN if bad else Mark.OK, text=text)
    if has_token and address is not None:
        return Finding(
            area=AREA,
            name="authentication",
            mark=Mark.WARN,
            text="RAY_AUTH_MODE is not set and a token is here, so this machine uses it; a cluster that was "
            "started without one loses actors without saying why",
            command="export RAY_AUTH_MODE=disabled    # or token, the same everywhere",
        )
    state = "a token is here and will be used" if has_token else "off"
    return Finding(area=AREA, name="authentication", mark=Mark.OK, text=f"RAY_AUTH_MODE is not set: {state}")
