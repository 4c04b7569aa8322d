"""The samples in config/ hold every setting with its default, and every setting says what it is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import yaml

from relay import config
from relay.config import (
    AgentConfig,
    EdgeConfig,
    JupyterHubSettings,
    JwtSettings,
    MtlsSettings,
    UpConfig,
    load,
)
from relay.config.loading import _locate

ROOT = Path(__file__).parents[1]
SAMPLES: dict[str, type[msgspec.Struct]] = {
    "edge.yaml": EdgeConfig,
    "agent.yaml": AgentConfig,
    "up.yaml": UpConfig,
}


SHOWN = {"authentication.tokens", "policy", "policy.rules"}
"""Settings whose samples show what is not their default, since that says nothing."""


def struct_in(kind: Any) -> type[msgspec.Struct] | None:
    """Find the struct that ``kind`` is, or holds."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next(filter(None, map(struct_in, get_args(kind))), None)


def differences(kind: Any, sample: Any, loaded: Any, path: str) -> Iterator[str]:
    """Name every setting that the sample lacks or shows with something else than its default."""
    for field in msgspec.structs.fields(kind):
        name = f"{path}{field.name}"
        value: Any = getattr(loaded, field.name, None)
        if field.name not in sample:
            yield f"{name} is missing"
        elif section := struct_in(field.type):
            for key, inner, held in items(sample[field.name], value):
                yield from differences(section, inner, held, f"{name}.{key}")
        if not field.required and name not in SHOWN and value != default_of(field):
            yield f"{name} is not the default"


def items(sample: Any, value: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every section in a setting's value, with its path below the setting."""
    if isinstance(value, dict):
        return ((f"{key}.", sample[key], held) for key, held in value.items())
    if isinstance(value, list):
        return ((f"{n}.", *both) for n, both in enumerate(zip(sample, value, strict=True)))
    return iter(() if value is None else (("", sample, value),))


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_loads_and_holds_every_setting_with_its_default(name: str) -> None:
    path = ROOT / "config" / name
    loaded = load(SAMPLES[name], path, {})
    sample = yaml.safe_load(path.read_text())
    assert list(differences(SAMPLES[name], sample, loaded, "")) == []


@pytest.mark.parametrize(
    ("name", "replacements"),
    [
        ("edge.yaml", {"    tls: null\n": "", "    # tls:": "    tls:", "    #   ": "      "}),
        (
            "agent.yaml",
            {
                "tls: null\n": "",
                "# tls:": "tls:",
                "#   ": "  ",
                "user: null\nlaunch_as: null\n": "",
                "# user:": "user:",
                "# launch_as:": "launch_as:",
                "runtime_dir: null": "runtime_dir: /run/relay",
            },
        ),
    ],
)
def test_sections_that_are_off_by_default_load_when_their_comment_signs_go(
    tmp_path: Path, name: str, replacements: dict[str, str]
) -> None:
    text = (ROOT / "config" / name).read_text().replace("http://", "https://")
    for old, new in replacements.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / name).write_text(text)
    loaded: Any = load(SAMPLES[name], tmp_path / name, {})
    holder = loaded.clusters["alpha"] if name == "edge.yaml" else loaded
    document = yaml.safe_load(text)
    written = document["clusters"]["alpha"]["tls"] if name == "edge.yaml" else document["tls"]
    assert written.keys() == {field.name for field in msgspec.structs.fields(holder.tls)}


def test_the_section_for_certificates_loads_when_its_comment_signs_go(tmp_path: Path) -> None:
    before, mark, rest = (ROOT / "config" / "edge.yaml").read_text().partition("  mtls: {}\n")
    assert mark
    shown, end, after = rest.partition("  # Principals that share")
    (tmp_path / "edge.yaml").write_text(f"{before}{shown.replace('  # ', '  ')}{end}{after}")
    loaded = load(EdgeConfig, tmp_path / "edge.yaml", {})
    assert loaded.authentication.mtls == {
        "robots.relay.example": MtlsSettings(ca=str(tmp_path / "robots-ca.crt"))
    }


def test_the_section_for_a_hub_loads_when_its_comment_signs_go(tmp_path: Path) -> None:
    before, mark, rest = (
        (ROOT / "config" / "edge.yaml").read_text().partition("  jupyterhub: null\n")
    )
    assert mark
    shown, end, after = rest.partition("  # Host names of the edge")
    shown = shown.replace("  # jupyterhub:", "  jupyterhub:").replace("  #   ", "    ")
    text = f"{before}{shown}{end}{after}"
    (tmp_path / "edge.yaml").write_text(text)
    loaded = load(EdgeConfig, tmp_path / "edge.yaml", {})
    assert loaded.authentication.jupyterhub == JupyterHubSettings()
    written = yaml.safe_load(text)["authentication"]["jupyterhub"]
    assert written.keys() == {each.name for each in msgspec.structs.fields(JupyterHubSettings)}


def test_the_issuer_that_is_shown_has_every_setting_with_its_default(tmp_path: Path) -> None:
    before, mark, rest = (ROOT / "config" / "edge.yaml").read_text().partition("  jwt: {}\n")
    assert mark
    lines = rest.splitlines()
    length = next(n for n, line in enumerate(lines) if not re.match(r"  #( jwt:|   )", line))
    shown = [line.replace("# ", "", 1) for line in lines[:length]]
    (tmp_path / "edge.yaml").write_text("\n".join([before, *shown, *lines[length:]]))
    loaded = load(EdgeConfig, tmp_path / "edge.yaml", {}).authentication.jwt["corp"]
    sample = yaml.safe_load("\n".join(shown))["jwt"]["corp"]
    assert list(differences(JwtSettings, sample, loaded, "")) == [
        "keys.discovery is not the default"
    ]


def test_a_sample_that_lacks_or_changes_a_setting_is_noticed() -> None:
    path = ROOT / "config" / "up.yaml"
    sample = yaml.safe_load(path.read_text())
    del sample["limits"]["headers"]
    loaded = load(UpConfig, path, {"RELAY_EDGE_WORKERS": "3"})
    assert list(differences(UpConfig, sample, loaded, "")) == [
        "limits.headers is missing",
        "edge_workers is not the default",
    ]


def test_every_variable_named_in_a_sample_is_one() -> None:
    seen = 0
    for name, kind in SAMPLES.items():
        for variable in re.findall(r"RELAY_([A-Z_]+)", (ROOT / "config" / name).read_text()):
            _, leaf = _locate(kind, tuple(variable.lower().split("__")))
            assert leaf is not None, variable
            seen += 1
    assert seen > len(SAMPLES)


OTHERS = {"__init__", "holder", "loading"}
"""The files of relay/config/ whose structs nobody sets."""


def test_every_setting_has_a_docstring() -> None:
    files = {file.stem: file for file in (ROOT / "relay" / "config").glob("*.py")}
    assert files.keys() > OTHERS
    trees = [ast.parse(file.read_text()) for name, file in files.items() if name not in OTHERS]
    structs = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len(structs) > 10
    bare = [
        f"{struct.name}.{ast.unparse(field.target)}"
        for struct in structs
        for field, after in zip(struct.body, [*struct.body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign)
        and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]
    assert bare == []


def test_every_struct_is_frozen_and_refuses_what_it_does_not_know() -> None:
    structs = [
        each
        for each in vars(config).values()
        if isinstance(each, type) and issubclass(each, msgspec.Struct)
    ]
    assert len(structs) > 10
    for struct in structs:
        assert struct.__struct_config__.frozen
        assert struct.__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize("name", SAMPLES)
def test_settings_written_as_yaml_load_as_the_same_settings(tmp_path: Path, name: str) -> None:
    """A supervisor hands its children their settings so."""
    settings = load(SAMPLES[name], ROOT / "config" / name, {})
    (tmp_path / name).write_bytes(msgspec.yaml.encode(settings))
    assert load(SAMPLES[name], tmp_path / name, {}) == settings
