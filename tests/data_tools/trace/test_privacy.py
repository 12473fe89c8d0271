"""What is redacted, what is not, in what time; block lists."""

import os
from pathlib import Path

import pytest

from data_tools.trace.config import PrivacyConfig
from data_tools.trace.privacy import KINDS, Privacy, find_privacy_problems, read_block_list
from olmo_train.errors import ConfigError

ALL = Privacy(PrivacyConfig(redact=list(KINDS)))


@pytest.mark.parametrize(
    "text, redacted",
    [
        ("mail john.smith+x@mail.example.co.uk now", "mail [email] now"),
        ("<ümläut@bücher.de>", "<[email]>"),
        ("a@b, @user, x@localhost", "a@b, @user, x@localhost"),
        ("+49 (0)30 1234-5678.", "[phone]."),
        ("0031201234567 or +31.20.123.45.67", "[phone] or [phone]"),
        ("(555) 123-4567, 555-123-4567, 1-555-123-4567", "[phone], [phone], [phone]"),
        ("0171 1234567 and 020 7946 0958", "[phone] and [phone]"),
        ("01-02-2023 10:00, 2023-01-02, 12:30:45", "01-02-2023 10:00, 2023-01-02, 12:30:45"),
        ("0123456789 1234567890123 3.14159265358979", "0123456789 1234567890123 3.14159265358979"),
        ("at 192.168.0.1.", "at [ip]."),
        ("version 1.2.3.4.5 or 256.1.1.1", "version 1.2.3.4.5 or 256.1.1.1"),
        ("fe80::1ff:fe23:4567:890a end", "[ip] end"),
        ("2001:0db8:85a3:0000:0000:8a2e:0370:7334.", "[ip]."),
        ("::ffff:10.0.0.1", "[ip]"),
        ("std::vector<a::b> x[::2] ::", "std::vector<a::b> x[::2] ::"),
        ("DE89 3704 0044 0532 0130 00 Some", "[iban] Some"),
        ("GB82WEST12345698765432", "[iban]"),
        ("GB82WEST12345698765433", "GB82WEST12345698765433"),
        ("4111 1111 1111 1111 or 5500-0000-0000-0004", "[credit_card] or [credit_card]"),
        ("4111 1111 1111 1112", "4111 1111 1111 1112"),
        ("nothing here", "nothing here"),
        ("", ""),
    ],
)
def test_personal_data_is_replaced_by_its_kind(text: str, redacted: str) -> None:
    assert ALL.redact(text) == redacted


def test_only_the_kinds_that_are_told_are_replaced() -> None:
    text = "a.b@example.org 192.0.2.1 +31 20 123 4567"
    assert Privacy(PrivacyConfig(redact=["ip"])).redact(text) == "a.b@example.org [ip] +31 20 123 4567"
    assert Privacy(PrivacyConfig(redact=[])).redact(text) == text


def test_patterns_of_the_user_come_first() -> None:
    privacy = Privacy(PrivacyConfig(redact=["email"], patterns={"ticket": r"T-\d+", "all": r"\w+@example\.org"}))
    assert privacy.redact("T-12 me@example.org you@example.com") == "[ticket] [all] [email]"


def test_what_lies_across_seams_is_found_and_stands_in_the_first_part_shown() -> None:
    parts = ["call john@ex", "ample.com and ", "bob@x.org!"]
    assert ALL.redact_parts(parts) == (["call [email]", " and ", "[email]!"], {"email": 2})
    assert ALL.redact_parts(parts, slice(1, 3)) == (["[email] and ", "[email]!"], {"email": 2})
    assert ALL.redact_parts(["a@b.org ", "x", " c@d.org"], slice(1, 2)) == (["x"], {})
    assert ALL.redact_parts(["jo", "hn@exa", "mple.com"]) == (["[email]", "", ""], {"email": 1})


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_redacted_as_the_whole(seed: int) -> None:
    text = "x a.b@example.org y 192.0.2.17, +31 20 123 4567; DE89 3704 0044 0532 0130 00 z"
    a, b = sorted([(seed * 7) % len(text), (seed * 31) % len(text)])
    parts, counts = ALL.redact_parts([text[:a], text[a:b], text[b:]])
    assert "".join(parts) == ALL.redact(text) == "x [email] y [ip], [phone]; [iban] z"
    assert sum(counts.values()) == 4


def test_values_are_redacted_through_and_through() -> None:
    values = {"author": "a@b.org", "list": ["x", {"c@d.org": 1}], "year": 2020, "phone": 31201234567, "ok": True, "none": None}
    shown, counts = ALL.redact_value(values)
    assert shown == {
        "author": "[email]",
        "list": ["x", {"[email]": 1}],
        "year": 2020,
        "phone": 31201234567,
        "ok": True,
        "none": None,
    }
    assert counts == {"email": 2}
    assert ALL.redact_value({"card": 4111111111111111}) == ({"card": "[credit_card]"}, {"credit_card": 1})


def test_ids_stay_ids_but_for_addresses() -> None:
    names = ["https://x.org/~jane@y.org/1", "0171 1234567", "host-192.0.2.1", "plain"]
    assert ALL.redact_names(names) == (["https://x.org/~[email]/1", "0171 1234567", "host-[ip]", "plain"], {"email": 1, "ip": 1})


HOSTILE = [
    "a",
    "a@",
    "a@b.",
    "1",
    "1 ",
    "+1",
    "a:",
    ":",
    "AB12",
    "1.",
    "+1234567890123456",
    "01 ",
    "(",
    "555-",
    "GB82 WEST ",
    "a.a.a@",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_lines_come_to_an_end(unit: str) -> None:
    """A pattern whose time grows faster than the text would not end on a quarter of a million characters."""
    text = (unit * 240_000)[:240_000]
    assert len(ALL.redact(text)) <= len(text)


# ---- block lists ---------------------------------------------------------------------------------------------------------


def test_a_block_list_has_an_id_per_line_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "blocked.txt"
    path.write_text("# takedowns\n\na/1\n  b 2  # asked for on Monday\nhttps://x.org/#part\r\n日本語\n")
    assert read_block_list(path) == ["a/1", "b 2", "https://x.org/#part", "日本語"]


def test_lists_are_read_again_when_they_change(tmp_path: Path) -> None:
    listed, default = tmp_path / "a.txt", tmp_path / "b.txt"
    listed.write_text("x\n")
    privacy = Privacy(PrivacyConfig(blocked=[str(listed)]), [default])
    assert privacy.blocked == {"x"}
    default.write_text("y\n")
    assert privacy.blocked == {"x", "y"}
    listed.write_text("z\n")
    os.utime(listed, ns=(1, 1))
    assert privacy.blocked == {"y", "z"}
    default.unlink()
    assert privacy.blocked == {"z"}


def test_a_list_that_cannot_be_read_is_an_error_at_any_time(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    with pytest.raises(
        ConfigError, match=r"privacy.blocked=.*list.txt: .*No such file.*; give a text file with the id of a document per line"
    ):
        Privacy(PrivacyConfig(blocked=[str(path)]))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"privacy.blocked=.*list.txt: .*utf-8"):
        Privacy(PrivacyConfig(blocked=[str(path)]))
    path.write_text("x\n")
    privacy = Privacy(PrivacyConfig(blocked=[str(path)]))
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        _ = privacy.blocked


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    config = PrivacyConfig([str(tmp_path / "a"), str(tmp_path / "b")], ["name", "email"], {"bad": "(", "good": "x"})
    problems = find_privacy_problems(config)
    assert len(problems) == 4
    assert (
        problems[0]
        == "privacy.redact=name is not a kind of personal data; kinds: email, iban, credit_card, ip, phone, or use patterns"
    )
    assert problems[1].startswith("privacy.patterns.bad='(' is no regular expression of Python: ")
    with pytest.raises(ConfigError) as caught:
        Privacy(config)
    assert caught.value.problems == problems
