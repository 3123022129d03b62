"""Files that are not UTF-8: the encoding that is named is theirs, and the command converts them."""

import json
import shutil
import subprocess

import pytest

from medjax.data.decoding import read_text

LINES = "".join(
    json.dumps({"id": f"q{n}", "question": text, "choices": ["はい", "いいえ"], "answer": ["a"]}, ensure_ascii=False)
    + "\n"
    for n, text in enumerate(("Which one?", "急性心筋梗塞で上昇するのはどれか。", "２つ選べ。ﾄﾛﾎﾟﾆﾝ"))
)


@pytest.mark.parametrize(
    ("codec", "name", "line"),
    [
        ("cp932", "CP932", 1),
        ("euc_jp", "EUC-JP", 1),
        ("iso2022_jp", "ISO-2022-JP", 1),
        ("utf-16", "UTF-16", 1),
        ("utf-16-be", "UTF-16BE", 1),
        ("utf-16-le", "UTF-16LE", 1),
    ],
)
def test_the_encoding_is_named_and_the_command_converts(tmp_path, codec, name, line):
    path = tmp_path / "ward 1.jsonl"
    text = LINES if codec != "iso2022_jp" else LINES.replace("ﾄﾛﾎﾟﾆﾝ", "")
    path.write_bytes(text.encode(codec))
    with pytest.raises(ValueError) as error:
        read_text(path)
    message = str(error.value)
    assert message.startswith(f"{path}, line {line}: got bytes that are not UTF-8 (")
    command = f"iconv -f {name} -t UTF-8 '{path}' > '{tmp_path}/ward 1-utf8.jsonl'"
    assert message.endswith(f"expected UTF-8; it looks like {name}: {command}")
    if shutil.which("iconv"):
        subprocess.run(command, shell=True, check=True)
        assert read_text(tmp_path / "ward 1-utf8.jsonl") == text


def test_the_first_line_with_other_bytes_is_named(tmp_path):
    path = tmp_path / "sjis.jsonl"
    path.write_bytes(b'{"id": "q"}\n\n' + '{"id": "問題"}'.encode("shift_jis"))
    with pytest.raises(ValueError) as error:
        read_text(path)
    assert str(error.value).startswith(f"{path}, line 3: got bytes that are not UTF-8 (invalid start byte: 0x96), exp")
    assert "it looks like CP932" in str(error.value)


def test_utf8_is_read_with_and_without_a_mark(tmp_path):
    for codec in ("utf-8", "utf-8-sig"):
        (tmp_path / "x").write_bytes(LINES.encode(codec))
        assert read_text(tmp_path / "x") == LINES
    (tmp_path / "x").write_bytes(b"")
    assert read_text(tmp_path / "x") == ""


def test_bytes_of_no_japanese_encoding_get_no_guess(tmp_path):
    (tmp_path / "x.csv").write_bytes("Ménière, ça".encode("latin-1"))
    with pytest.raises(ValueError) as error:
        read_text(tmp_path / "x.csv")
    assert str(error.value).endswith('0xe9), expected UTF-8; save the file as UTF-8 (Excel: "CSV UTF-8")')
    (tmp_path / "x.txt").write_bytes("Ménière, ça".encode("latin-1"))
    with pytest.raises(ValueError) as error:
        read_text(tmp_path / "x.txt")
    assert str(error.value).endswith("0xe9), expected UTF-8; save the file as UTF-8")


@pytest.mark.parametrize(("codec", "name"), [("cp932", "CP932"), ("utf-16", "UTF-16")])
@pytest.mark.parametrize("ending", ["csv", "TSV"])
def test_of_a_table_the_way_without_iconv_is_told_too(tmp_path, codec, name, ending):
    path = tmp_path / f"ward.{ending}"
    path.write_bytes("id,問題,正解\n1,どれか。,ア\n".encode(codec))
    with pytest.raises(ValueError) as error:
        read_text(path)
    way = f'it looks like {name}: save it in Excel as "CSV UTF-8", or: iconv -f {name} -t UTF-8 {path}'
    assert way in str(error.value)
