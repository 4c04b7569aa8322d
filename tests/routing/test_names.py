from __future__ import annotations

import pytest

from relay.routing.names import MAX_NAME, is_kernel_id, is_kernelspec_name

ID = "b7b0a5f2-1d5c-4a5e-9a4b-0c8f7d3e2a11"


@pytest.mark.parametrize(
    "text", [ID, ID.upper(), "a-b-c-d-e", "a_1-B-c-d-e", "1-2-3-4-" + "x" * 56]
)
def test_kernel_ids(text: str) -> None:
    assert is_kernel_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "----",
        "a-b-c-d",
        "a-b-c-d-",
        "-a-b-c-d",
        "a-b-c-d-e-f",
        "a--b-c-d",
        "a-b-c-d-e\n",
        "a-b-c-d-e ",
        "a-b-c-d-\u00e9",
        "a-b-c-d-\u0663",
        "a-b-c-d-\uff45",
        "a-b-c-d-.",
        "a-b-c-d-..",
        "a-b-c-d-e/f",
        "../a-b-c-d-e",
        "a.b-c-d-e-f",
        "a-b-c-d-e\0",
        "1-2-3-4-" + "x" * 57,
        ID.replace("-", ""),
        "{" + ID + "}",
    ],
)
def test_not_kernel_ids(text: str) -> None:
    assert not is_kernel_id(text)


@pytest.mark.parametrize(
    "name", ["python3", "ir", "xeus-cpp.17", "My_Kernel", ".x", "a" * MAX_NAME]
)
def test_kernelspec_names(name: str) -> None:
    assert is_kernelspec_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "...",
        "a/b",
        "a\\b",
        "a b",
        "a\n",
        "a\0",
        "\u00e4",
        "a" * (MAX_NAME + 1),
        "a%",
    ],
)
def test_not_kernelspec_names(name: str) -> None:
    assert not is_kernelspec_name(name)
