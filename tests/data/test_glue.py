"""Reading GLUE tasks from TSV files."""

from __future__ import annotations

from pathlib import Path

import pytest

from farshore.core.errors import DataError, NotFoundError
from farshore.data.glue import LAYOUTS, load_glue

SST2 = b"sentence\tlabel\n"


def write(folder: Path, train: bytes, dev: bytes | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.tsv").write_bytes(train)
    (folder / "dev.tsv").write_bytes(train if dev is None else dev)
    return folder


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("task", "train", "dev"),
    [("sst2", 67_349, 872), ("cola", 8_551, 1_043), ("rte", 2_490, 277), ("wnli", 635, 71)],
)
def test_real_files_have_the_published_sizes(glue_folder: Path, task: str, train: int, dev: int) -> None:
    loaded = load_glue(task, glue_folder)
    assert (len(loaded.train), len(loaded.dev)) == (train, dev)
    direct = load_glue(task, glue_folder / LAYOUTS[task].folder)
    assert direct.dev == loaded.dev


@pytest.mark.realdata
def test_real_rte_has_pairs_and_entailment_is_class_0(glue_folder: Path) -> None:
    rte = load_glue("rte", glue_folder)
    assert rte.train[0].text == "No Weapons of Mass Destruction Found in Iraq Yet."
    assert rte.train[0].text_pair == "Weapons of Mass Destruction Found in Iraq."
    assert [e.label for e in rte.train[:2]] == [1, 0]
    assert rte.labels[0] == "entailment"


def test_quotes_are_kept_in_the_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path, SST2 + b'"a lone quote\t1\n"whole" thing"\t0\n')
    assert [e.text for e in load_glue("sst2", folder).train] == ['"a lone quote', '"whole" thing"']


def test_quotes_of_csv_are_removed_and_noted(tmp_path: Path) -> None:
    exported = SST2 + b'"He said ""no"" twice"\t1\nplain\t0\n"""quoted"""\t1\n'
    task = load_glue("sst2", write(tmp_path, exported, dev=SST2 + b"plain\t1\n"))
    assert [e.text for e in task.train] == ['He said "no" twice', "plain", '"quoted"']
    assert ["CSV quotes" in note for note in task.notes] == [True]


def test_doubled_quotes_in_a_file_with_unbalanced_ones_are_text(tmp_path: Path) -> None:
    texts = ['"a ""b"" c"', 'an "open quote']
    task = load_glue("sst2", write(tmp_path, SST2 + "".join(f"{t}\t1\n" for t in texts).encode()))
    assert [e.text for e in task.train] == texts
    assert task.notes == ()


def test_byte_order_mark_crlf_and_blank_lines_are_ignored(tmp_path: Path) -> None:
    plain = load_glue("sst2", write(tmp_path / "plain", SST2 + b"good\t1\nbad\t0\n"))
    messy = b"\xef\xbb\xbfsentence\tlabel\r\n\r\ngood\t1\r\n   \r\nbad\t0"
    assert load_glue("sst2", write(tmp_path / "messy", messy)).train == plain.train


def test_unicode_line_separators_do_not_end_a_line(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"
    folder = write(tmp_path, SST2 + f"{text}\t1\n".encode())
    assert [e.text for e in load_glue("sst2", folder).train] == [text]


def test_cola_has_no_header_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "CoLA", b"gj04\t1\t\tFirst one.\ngj04\t0\t*\tSecond the.\n")
    cola = load_glue("cola", folder.parent)
    assert [(e.text, e.label) for e in cola.train] == [("First one.", 1), ("Second the.", 0)]
    assert cola.metric == "matthews"


def test_mrpc_and_mnli_are_read_from_their_own_columns(tmp_path: Path) -> None:
    mrpc = tmp_path / "MRPC"
    mrpc.mkdir()
    for name in ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"):
        (mrpc / name).write_bytes("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tA b.\tC d.\n".encode())
    (example,) = load_glue("mrpc", tmp_path).train
    assert (example.text, example.text_pair, example.label) == ("A b.", "C d.", 1)

    mnli = tmp_path / "MNLI"
    mnli.mkdir()
    names = ["index", "promptID", "pairID", "genre", "p1", "p2", "h1", "h2", "sentence1", "sentence2"]
    # Train has the label of one annotator, dev of five; the gold label is the last column of both.
    for name, extra in (("train.tsv", ["label1"]), ("dev_matched.tsv", [f"label{i}" for i in range(1, 6)])):
        header = "\t".join([*names, *extra, "gold_label"])
        row = "\t".join([*names[:8], "A b.", "C d.", *["neutral"] * len(extra), "contradiction"])
        (mnli / name).write_text(f"{header}\n{row}\n")
    assert [(e.text, e.text_pair, e.label) for e in load_glue("mnli", tmp_path).dev] == [("A b.", "C d.", 1)]


@pytest.mark.parametrize(
    ("content", "line", "word"),
    [
        (SST2 + b"fine\t1\nno label here\n", 3, "columns"),
        (SST2 + b"fine\t1\n\nodd\t7\n", 4, "'7'"),
        (SST2 + b"latin \xe9\t1\n", 2, "UTF-8"),
        (b"good\t1\nbad\t0\n", 1, "header"),
        (b"index\tsentence\n0\tgood\n", 1, "header"),
    ],
)
def test_error_about_a_malformed_line_names_file_and_line_and_has_a_hint(
    tmp_path: Path, content: bytes, line: int, word: str
) -> None:
    folder = write(tmp_path, SST2 + b"good\t1\n", dev=content)
    with pytest.raises(DataError) as caught:
        load_glue("sst2", folder)
    assert f"dev.tsv, line {line}:" in caught.value.message
    assert word in caught.value.message
    assert caught.value.hint


def test_error_about_missing_files_names_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_glue("sst2", tmp_path / "nowhere")
    (write(tmp_path / "SST-2", SST2 + b"good\t1\n") / "dev.tsv").unlink()
    with pytest.raises(DataError, match=r"SST-2 does not contain dev\.tsv"):
        load_glue("sst2", tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no examples"):
        load_glue("cola", write(tmp_path, b"\n"))
    with pytest.raises(DataError, match="no examples"):
        load_glue("sst2", write(tmp_path, SST2))
    with pytest.raises(DataError, match="header"):
        load_glue("sst2", write(tmp_path, b""))


def test_error_about_an_unknown_task_lists_known_tasks() -> None:
    with pytest.raises(NotFoundError, match="sst2"):
        load_glue("sst3", Path())
