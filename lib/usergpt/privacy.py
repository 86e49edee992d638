"""Masks what may identify or harm a person before a text is cut, shown, saved or sent: addresses, numbers, keys.

Masking is by pattern, and where a number has check digits by those too; names and street addresses stay. The patterns
are ours: presidio needs spaCy and one of its language models (hundreds of MB) to begin, and detect-secrets knows keys
only, line by line, with entropy rules that take source code for secrets. A text is masked *before* it is cut
(`Conversation.masked`), since half an address is no longer found by its pattern and is still half an address.
"""

import re
from collections.abc import Callable
from functools import partial

VALUE = r"[^\s\"'`,;<>(){}\[\]]"  # a character of a value that is written without quotes
NAMES = r"pass(?:word|wd|phrase|code)?|pwd|secret|token|credential|(?:api|access|private|auth|account)[-_ ]?key|apikey"
PLACEHOLDER = r"(?!your|my|the|some|xxx|\*|<|\$|%|\{|string|text|password|none|null|true|false|example|process\.)"


def _luhn(match: re.Match[str]) -> bool:
    """Whether the digits of a payment card pass its check sum."""
    digits = [int(d) for d in re.sub(r"\D", "", match[0])][::-1]
    return len(set(digits)) > 1 and sum(digits[::2] + [sum(divmod(2 * d, 10)) for d in digits[1::2]]) % 10 == 0


def _iban(match: re.Match[str]) -> bool:
    """Whether an account number passes ISO 7064's check, modulo 97."""
    letters = re.sub(r"\s", "", match[0]).upper()
    return int("".join(str(int(c, 36)) for c in letters[4:] + letters[:4])) % 97 == 1


def _host(match: re.Match[str]) -> bool:
    """Whether four numbers are the address of a machine, not a mask, the machine itself or everybody."""
    parts = [int(part) for part in match[0].split(".")]
    return max(parts) < 256 and parts[0] not in (0, 127, 255)


def _hash_is_secret(match: re.Match[str]) -> bool:
    """Whether hexadecimal digits are not a check sum or a commit, which say so before them."""
    return not re.search(
        r"(?i)(?:sha\d*|md5|commit|hash|integrity|digest)\W{0,3}$", match.string[: match.start()][-24:]
    )


Check = Callable[[re.Match[str]], bool]
PATTERNS: tuple[tuple[str, str, Check | None], ...] = (
    ("key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", None),
    ("key", r"\b(?:sk|pk|rk)[-_](?:live|test|proj|ant|or)?[-_]?(?=[\w-]*\d)[A-Za-z0-9_-]{16,}", None),
    ("key", r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abeprs]-[\w-]{10,}"
            r"|hf_[A-Za-z0-9]{20,}|npm_\w{30,}|pypi-[\w-]{40,}|SG\.[\w-]{16,}\.[\w-]{16,}|ya29\.[\w-]{20,}"
            r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|whsec_\w{20,}|shp(?:at|ss)_\w{20,}|dop_v1_\w{30,})", None),
    ("key", r"(?<!\d)\d{8,10}:[A-Za-z0-9_-]{35}(?![\w-])", None),  # Telegram bots
    ("key", r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*", None),  # JSON web tokens
    ("key", r"(?i)(?<=bearer )(?=\S*\d)[\w.~+/-]{16,}=*|(?<=basic )(?=\S*\d)[A-Za-z0-9+/]{12,}=*", None),
    ("key", r"(?<=://)[^\s:/@]+:[^\s:/@]+(?=@)|(?<=hooks\.slack\.com/services/)[\w/]+", None),
    # NAME = "value": a quoted one, one of an environment variable, or one with a digit or a sign in it
    ("key", rf"(?i)(?P<keep>(?:{NAMES})[\w-]{{0,30}}[\"']?\s*(?:[:=]|=>|:=)\s*[\"'`])"
            rf"{PLACEHOLDER}[^\s\"'`]{{6,}}(?=[\"'`])", None),
    ("key", rf"(?P<keep>\b(?:[A-Z\d]+_)*(?:PASS(?:WORD|WD|PHRASE)?|PWD|SECRET|TOKEN|KEY)(?:_[A-Z]+)*=)"
            rf"(?i:{PLACEHOLDER}){VALUE}{{6,}}(?=\s|$)", None),
    ("key", rf"(?i)(?P<keep>(?:{NAMES})[\w-]{{0,30}}[\"']?(?:\s*(?:[:=]|=>|:=)\s*|\s+is:?\s+))"
            rf"{PLACEHOLDER}(?={VALUE}*[\d!@#$%^&*])(?!\d+\b){VALUE}{{6,}}(?=[\s,;\"'`<]|$)", None),
    ("e-mail", r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b", None),
    ("address", r"(?<![\w./-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)", _host),
    ("address", r"(?i)(?<![\w:])(?:[23][0-9a-f]{3}|f[cde][0-9a-f]{2})(?::[0-9a-f]{0,4}){2,7}(?![\w:])", None),
    ("address", r"(?<![\w:-])(?:(?:[0-9A-Fa-f]{2}:){5}|(?=[\d-]*[A-Fa-f])(?:[0-9A-Fa-f]{2}-){5})[0-9A-Fa-f]{2}"
                r"(?![\w:-])", None),
    ("number", r"(?<![\w.-])(?:\d[ -]?){12,18}\d(?![\w-]|\.\d)", _luhn),
    ("number", r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b", _iban),
    ("number", r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])", None),
    ("phone", r"(?<![\w.+)\]])\+\d(?:[ .-]?\(?\d\)?){8,14}(?!\w|\.\d)", None),
    ("phone", r"(?<![\w.,/-])\(\d{3}\) ?\d{3}[ .-]\d{4}\b", None),
    ("phone", r"(?<![\w.,/+-])(?:1-)?\d{3}([-.])\d{3}\1\d{4}(?![\w-]|\.\d)", None),
    ("phone", r"(?i)(?P<keep>\b(?:phone|tele(?:ph|f)one?|tel|mobile|cell|call|whatsapp|fax|ring|text|dial|contact)\b"
              r"[^\d\n+(]{0,16})\+?\(?\d(?:[ ./()-]{0,2}\d){6,13}(?![\w-]|\.\d)", None),
    ("key", r"\b(?=[A-Fa-f]*\d)(?=\d*[A-Fa-f])[A-Fa-f0-9]{32,}\b", _hash_is_secret),
    ("key", r"\b(?=\w*[a-z])(?=\w*[A-Z])(?=(?:[A-Za-z_]*\d){3})[A-Za-z0-9_]{36,}\b", _hash_is_secret),
)  # fmt: skip
COMPILED = tuple((kind, re.compile(pattern, re.DOTALL), check) for kind, pattern, check in PATTERNS)


def mask(text: str) -> str:
    """Text with e-mail and network addresses, telephone, card, bank and identity numbers, and keys as `[kind]`."""
    for kind, pattern, check in COMPILED:
        text = pattern.sub(partial(_instead, kind, check), text)
    return text


def _instead(kind: str, check: Check | None, match: re.Match[str]) -> str:
    if check is not None and not check(match):
        return match[0]
    return f"{match.groupdict().get('keep') or ''}[{kind}]"


def masked_excerpt(text: str, characters: int = 160) -> str:
    """At most `characters` of a text on one line, masked before it is cut so that no half of a secret survives."""
    line = " ".join(mask(text).split())
    return line if len(line) <= characters else f"{line[: characters - 2].rstrip()} …"
