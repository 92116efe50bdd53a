"""Invalid input ends in one clear message, before training starts, through the real command line."""

import json
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, fitting, run
from safetensors import safe_open
from safetensors.torch import save_file

from transrec import runner
from transrec.data.catalog import tokenise
from transrec.data.demo import make_text_backbone
from transrec.errors import TransrecError
from transrec.models.backbone import check_tokens, load_config, load_tokenizer
from transrec.training import checkpoint
from transrec.training.run import Run

SCRIPT = REPOSITORY / "Downstream" / "Text" / "script" / "adapter_houlsby.py"


@pytest.fixture
def dataset(domain, tmp_path) -> Path:
    """A copy of the small dataset that a test may spoil."""
    return shutil.copytree(domain, tmp_path / "set", ignore=shutil.ignore_patterns("images"))


@pytest.fixture
def fails(flags, dataset, tmp_path, monkeypatch, capsys):
    """Return a function that runs a script's entry point on the spoilt dataset and returns the printed message."""

    def call(*more: str, method: str = "houlsby") -> str:
        arguments = fitting([*flags, "--dataset", str(dataset), *more])
        if "--output" not in more:
            arguments += ["--output", str(tmp_path / "run")]
        monkeypatch.setattr(sys, "argv", ["adapter.py", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            runner.adapt(method)
        assert exit_.value.code == 2
        captured = capsys.readouterr()
        assert "epoch" not in captured.out.replace("epochs of", ""), "training had started"
        assert captured.err.endswith("\n") and captured.err.splitlines()[-1].startswith("error: ")
        return captured.err.splitlines()[-1]

    return call


def spoil(path: Path, line: int, text: str | bytes) -> None:
    """Replace one line (counted from 1); the number after the last line appends."""
    lines = path.read_bytes().split(b"\n")[:-1]
    lines[line - 1 : line] = [text.encode() if isinstance(text, str) else text]
    path.write_bytes(b"\n".join(lines) + b"\n")


def test_missing_dataset_folder(fails):
    assert "nowhere: no such dataset folder; give it with --dataset" in fails("--dataset", "/nowhere")


@pytest.mark.parametrize("role", ["users", "items"])
def test_missing_file(fails, dataset, role):
    (dataset / f"{role}.tsv").unlink()
    assert f"{role}.tsv: cannot read the {role} file (No such file or directory)" in fails()


def test_no_file_fits(fails, dataset):
    (dataset / "dataset.json").unlink()
    (dataset / "items.tsv").rename(dataset / "things.tsv")
    message = fails()
    held = "features.npy, ids.txt, images.lmdb, things.tsv, users.tsv"
    wanted = "*items*.tsv or *news*.tsv or *items*.parquet or *news*.parquet"
    assert f"no file fits {wanted}; it holds {held}; name it" in message
    for number in range(30):
        (dataset / f"part{number:02}.csv").touch()
    message = fails()
    assert "part00.csv" in message and " and 25 more; name it with --items_file" in message
    assert "part20.csv" not in message


@pytest.mark.parametrize(
    "line", ["user_id\titem_ids", "userId\tmovieId\trating\ttimestamp", "user_id:token\titem_id_list:token_seq"]
)
def test_a_header_over_behaviours(fails, dataset, line):
    file = dataset / "users.tsv"
    file.write_text(f"{line}\n{file.read_text()}")
    message = fails()
    assert f"users.tsv, line 1: {line!r} looks like a header" in message
    assert "remove that line, with: tail -n +2 users.tsv" in message


@pytest.mark.parametrize(
    "header,row,template,message",
    [
        (
            "asin\tname",
            "{}\tlamp {}",
            None,
            "items.tsv: has no column 'title', which the text encoder would read; its "
            "columns are asin, name; choose by --text_template",
        ),
        ("item_id\tTitle\ttitle", "{}\tlamp {}\tx", None, "line 1: the header names column 'title' twice; rename one"),
        (
            "item_id\ttitle",
            "{}\tlamp\t{}",
            None,
            "line 2: has 3 columns, and the header names 2; name all, and write no",
        ),
        (
            "item_id\ttitle",
            "{}\t",
            None,
            "items has a title, which the text encoder would read; put titles into column",
        ),
        (
            "id\ttitle\tbrand",
            "{}\tlamp {}\tx",
            "{title}. {maker}",
            "--text_template '{title}. {maker}': {path} has no column 'maker'; its columns are id, title, brand",
        ),
        ("id\ttitle", "{}\tlamp {}", "{title.__class__}", "no column 'title.__class__'; its columns are id, title"),
        ("id\ttitle", "{}\tlamp {}", "{title!r:>9999999999}", "no column 'title!r:>9999999999'; its columns are id"),
        ("id\ttitle", "{}\tlamp {}", "{0}{}", "'{0}{}': {path} has no column '0'; its columns are id, title"),
        ("id\ttitle", "{}\tlamp {}", "{title", "--text_template '{title': the brace at character 1 has no partner"),
        ("id\ttitle", "{}\tlamp {}", "title", "--text_template 'title': names no column, as '{title}. {brand}' does"),
        ("id\ttitle\tbrand", "{}\tlamp {}\t", "{brand}", "none of its 150 items has a text, which the text encoder"),
        (
            None,
            "{}\tlamp {}",
            "{title}. {brand}",
            "has no column 'brand'; its columns are item_id, title, because it has no "
            "header line, such as item_id<TAB>title<TAB>brand",
        ),
    ],
)
def test_columns_of_an_items_file(fails, dataset, header, row, template, message):
    items = [line.split("\t")[0] for line in (dataset / "items.tsv").read_text().splitlines()]
    rows = [row.format(item, number) for number, item in enumerate(items)]
    (dataset / "items.tsv").write_text("\n".join([*([header] if header else []), *rows]))
    given = [] if template is None else ["--text_template", template]
    assert message.replace("{path}", str(dataset / "items.tsv")) in fails(*given)


def retitle(dataset, title) -> None:
    """Give item `number` the title (and further columns) that `title(number)` returns."""
    items = [line.split("\t")[0] for line in (dataset / "items.tsv").read_text().splitlines()]
    (dataset / "items.tsv").write_text("".join(f"{item}{title(number)}\n" for number, item in enumerate(items)))


@pytest.mark.parametrize("empty", ["", "\t", "\t  "])
def test_items_without_titles_under_a_text_tower(fails, dataset, empty, flags, tmp_path):
    retitle(dataset, lambda number: empty)
    message = fails()
    assert "items.tsv: none of its 150 items has a title, which the text encoder would read" in message
    assert "--item_tower image or id" in message
    run([*flags, "--dataset", str(dataset), "--item_tower", "id", "--epochs", "1", "--output", str(tmp_path / "id")])


def test_titles_all_alike(fails, dataset):
    retitle(dataset, lambda number: "\tsports")
    assert "items.tsv: all 150 items have the same title, 'sports'" in fails()


def test_a_raw_file_of_mind(fails, dataset):
    retitle(dataset, lambda number: f"\tsports\tgolf\tA title {number}\tAn abstract\thttps://x/{number}\t[]\t[]")
    message = fails()
    assert "8 columns, as in a raw news.tsv of MIND (id, category, subcategory, title, abstract, url," in message
    assert "cut -f 1,4 news.tsv > items.tsv" in message


@pytest.mark.parametrize(
    "title,warning",
    [
        (
            lambda number: f"\tkind {number % 2}",
            "only 2 different titles for 150 items, as 'kind 0'; check that the second",
        ),
        (
            lambda number: f"\tlamp {number}\tan abstract",
            "has 3 columns, and only the second, the title, is read; --text_attributes",
        ),
        (lambda number: f"\tlamp {number}" if number else "", "1 of 150 items have no title"),
    ],
    ids=["few", "abstracts", "some without"],
)
def test_titles_that_serve_poorly(dataset, flags, tmp_path, capsys, title, warning):
    retitle(dataset, title)
    run([*flags, "--dataset", str(dataset), "--epochs", "1", "--output", str(tmp_path / "run")], "frozen")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1 and warning in lines[0]


@pytest.mark.parametrize("role", ["users", "items"])
def test_empty_file(fails, dataset, role):
    (dataset / f"{role}.tsv").write_text("\n")
    assert f"{role}.tsv: the {role} file is empty" in fails()


def test_malformed_behaviours_line(fails, dataset):
    spoil(dataset / "users.tsv", 7, "somebody without a tab")
    assert "users.tsv, line 7: 'somebody without a tab' is malformed; expected user_id<TAB>item item" in fails()


def test_a_third_column_of_users_is_not_read_as_items(fails, dataset):
    spoil(dataset / "users.tsv", 7, "new\tS00001 S00002\tS00003 S00004")
    message = fails()
    assert "users.tsv, line 7: 'new\\tS00001 S00002\\tS00003 S00004' has more than two columns; expected" in message


def test_malformed_items_line(fails, dataset):
    spoil(dataset / "items.tsv", 3, "\ta title without an id")
    assert "items.tsv, line 3: '' is not an item id; expected item_id<TAB>title" in fails()


def test_unknown_item(fails, dataset):
    spoil(dataset / "users.tsv", 2, "new\tS00001 NOPE S00002 S00003 S00004")
    message = fails()
    assert "users.tsv, line 2: user 'new' has item 'NOPE'" in message
    assert "items.tsv does not list; add the item there or remove it here" in message


def test_duplicate_item(fails, dataset):
    spoil(dataset / "items.tsv", 9, "S00003\tagain")
    assert "items.tsv, line 9: item 'S00003' stands on line 4 already; remove one of them" in fails()


def test_duplicate_user(fails, dataset):
    spoil(dataset / "users.tsv", 5, "small0\tS00001 S00002 S00003 S00004 S00005")
    assert "users.tsv, line 5: user 'small0' stands on line 1 already" in fails()


@pytest.mark.parametrize("role", ["users", "items"])
def test_bytes_that_are_not_utf8(fails, dataset, role):
    spoil(dataset / f"{role}.tsv", 4, b"caf\xe9\tS00001")
    assert f"{role}.tsv, line 4: byte 0xe9 at column 4 is not UTF-8; convert the file" in fails()


def test_no_user_left(fails):
    message = fails("--min_seq_len", "10")
    assert (
        "none of its 60 users has 10 interactions or more (the longest sequence has 9); lower --min_seq_len" in message
    )


@pytest.mark.parametrize(
    "flag",
    ["max_seq_len", "batch_size", "epochs", "embedding_dim", "item_bottleneck", "user_bottleneck", "eval_memory"],
)
def test_zero(fails, flag):
    assert fails(f"--{flag}", "0") == f"error: --{flag} 0: must be at least 1"


def test_sizes_that_do_not_go_together(fails):
    assert "--embedding_dim 16 cannot be divided among --heads 3" in fails("--heads", "3")
    assert "100 tokens per text, prompts included, and the text encoder takes 40" in fails("--title_tokens", "100")


def test_values_out_of_range(fails):
    assert fails("--dropout", "1.5") == "error: --dropout 1.5: must be below 1"
    assert fails("--cutoffs", "0", "5") == "error: --cutoffs [0, 5]: must be at least 1"


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize(
    "flag", ["lr", "backbone_lr", "adapter_lr", "dropout", "clip_grad_norm", "user_fraction", "mask_ratio"]
)
def test_numbers_that_are_not_finite(fails, flag, value):
    assert fails("--item_tower", "image", f"--{flag}={value}") == f"error: --{flag} {value}: must be a finite number"


def test_dataset_not_given(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["adapter.py"])
    with pytest.raises(SystemExit):
        runner.adapt("houlsby")
    assert capsys.readouterr().err == "error: --dataset is missing: give the folder of the dataset\n"


def test_unknown_method(fails):
    assert "--method hulsby: unknown; did you mean houlsby? choose from" in fails("--method", "hulsby")


def test_unknown_encoder(fails):
    message = fails("--text_encoder", "no-such-bert")
    assert "no text encoder found for 'no-such-bert'" in message or "no tokenizer found for 'no-such-bert'" in message
    assert "pretrained_models/" in message


def test_encoder_folder_without_a_model(fails, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no config.json there" in fails("--text_encoder", str(tmp_path / "empty"))


def test_encoder_that_is_a_decoder_too(fails, backbones, tmp_path):
    from transformers import T5Config, T5Model

    folder = shutil.copytree(backbones["bert"], tmp_path / "t5")
    T5Model(T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=300)).save_pretrained(folder)
    assert "a T5Model is an encoder and a decoder" in fails("--text_encoder", str(folder))


def test_encoder_with_weights_of_another_model(fails, backbones, tmp_path):
    from transformers import BertConfig

    folder = shutil.copytree(backbones["bert"], tmp_path / "bert")
    config = BertConfig.from_pretrained(folder)
    config.num_hidden_layers = 3
    config.save_pretrained(folder)
    message = fails("--text_encoder", str(folder))
    assert "the weights file lacks 16 tensors of the model, encoder.layer.2." in message


def test_encoder_of_other_widths_than_its_weights(fails, backbones, tmp_path):
    from transformers import BertConfig

    folder = shutil.copytree(backbones["bert"], tmp_path / "bert")
    config = BertConfig.from_pretrained(folder)
    config.hidden_size = 48
    config.save_pretrained(folder)
    assert "holds no text encoder that can be loaded (RuntimeError" in fails("--text_encoder", str(folder))


def test_encoder_that_reads_images(fails, backbones, tmp_path):
    from transformers import ViTConfig, ViTModel

    folder = shutil.copytree(backbones["bert"], tmp_path / "vit")
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32)
    ViTModel(config).save_pretrained(folder)
    message = fails("--text_encoder", str(folder))
    assert "not text" in message or "holds no tokenizer that can be loaded" in message


def test_encoder_without_a_tokenizer(fails, backbones, tmp_path):
    folder = shutil.copytree(backbones["bert"], tmp_path / "bert")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "bert: no tokenizer there (tokenizer.json, vocab.txt" in fails("--text_encoder", str(folder))


def test_tokenizer_of_another_model(fails, tmp_path):
    from transformers import BertConfig, BertModel

    make_text_backbone(tmp_path / "bert", hidden_size=32)
    config = BertConfig.from_pretrained(tmp_path / "bert")
    config.vocab_size = 60
    BertModel(config).save_pretrained(tmp_path / "bert")
    message = fails("--text_encoder", str(tmp_path / "bert"))
    assert "the model knows 60; the folder's tokenizer and weights are of different models" in message


def test_titles_the_tokenizer_does_not_know(fails, dataset):
    items = [line.split("\t")[0] for line in (dataset / "items.tsv").read_text().splitlines()]
    titles = "".join(f"{item}\t{'灯' * (1 + number % 9)} 红\n" for number, item in enumerate(items))
    (dataset / "items.tsv").write_text(titles)
    assert "100% of the titles' word pieces are unknown to its tokenizer" in fails()


def test_padding_is_not_unknown_where_a_tokenizer_pads_with_the_unknown_token(tmp_path):
    make_text_backbone(tmp_path, hidden_size=32, kind="llama")
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.pad_token = tokenizer.unk_token
    tokens = tokenise(["red lamp"] * 9, tokenizer, length=30)
    config = load_config(tmp_path)
    check_tokens(tokens.input_ids, tokens.lengths, tokenizer, config, "llama")
    tokens = tokenise(["灯 红"], tokenizer, length=30)
    with pytest.raises(TransrecError, match="100% of the titles' word pieces are unknown"):
        check_tokens(tokens.input_ids, tokens.lengths, tokenizer, config, "llama")


def test_broken_config(fails, backbones, tmp_path):
    folder = shutil.copytree(backbones["bert"], tmp_path / "bert")
    (folder / "config.json").write_text("{")
    assert f"{folder}: holds no t" in fails("--text_encoder", str(folder))


def test_encoder_with_truncated_weights(fails, backbones, tmp_path):
    folder = shutil.copytree(backbones["bert"], tmp_path / "bert")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "bert: holds no text encoder that can be loaded (SafetensorError" in fails("--text_encoder", str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_encoder_with_weights_that_are_not_finite(fails, backbones, tmp_path, value):
    folder = shutil.copytree(backbones["bert"], tmp_path / "bert")
    name = "encoder.layer.1.output.dense.bias"
    damage(folder / "model.safetensors", name, value)
    assert f"model.safetensors: the tensor {name} holds NaN or infinity" in fails("--text_encoder", str(folder))


def damage(path: Path, name: str, value: float) -> None:
    """Put a value into one tensor of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    "content,message",
    [
        ("{", "preprocessor_config.json: not a JSON object that can be read; fetch it again, or delete it"),
        ("[1]", "preprocessor_config.json: not a JSON object"),
        ('{"image_mean": [NaN, 0.5, 0.5]}', "image_mean is [nan, 0.5, 0.5]; it must be 3 finite numbers"),
        ('{"image_mean": [0.5]}', "image_mean is [0.5]; it must be 3 finite numbers"),
        ('{"image_mean": "grey"}', "image_mean is 'grey'; it must be 3 finite numbers"),
        ('{"image_std": [0.5, Infinity, 0.5]}', "image_std is [0.5, inf, 0.5]; it must be 3 finite numbers above 0"),
        ('{"image_std": [0.5, 0.0, 0.5]}', "image_std is [0.5, 0.0, 0.5]; it must be 3 finite numbers above 0"),
        ('{"size": "big"}', "size is 'big'; it must be 1 to 4,096 pixels"),
        ('{"size": {"height": 1e9}}', "size is {'height': 1000000000.0}; it must be 1 to 4,096 pixels"),
    ],
)
def test_malformed_preprocessing(fails, backbones, tmp_path, content, message):
    folder = shutil.copytree(backbones["vit"], tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text(content)
    images = ("--item_tower", "image", "--image_workers", "0")
    assert message in fails(*images, "--image_encoder", str(folder))


@pytest.fixture
def source(flags, tmp_path) -> Path:
    run([*flags, "--output", str(tmp_path / "source"), "--epochs", "1", "--keep_state"])
    return tmp_path / "source"


def test_missing_checkpoint(fails, tmp_path):
    assert "--checkpoint /nowhere: no such file or run folder" in fails("--checkpoint", "/nowhere")
    assert "holds no checkpoints/best.safetensors" in fails("--checkpoint", str(tmp_path))


@pytest.mark.parametrize(
    "flag,value,had", [("embedding_dim", 32, 16), ("max_seq_len", 5, 6), ("blocks", 3, 2), ("heads", 4, 2)]
)
def test_checkpoint_of_another_size(fails, source, flag, value, had):
    message = fails("--checkpoint", str(source), f"--{flag}", str(value))
    assert f"was trained with --{flag} {had}, this run has {flag} {value}; give --{flag} {had}" in message


def test_checkpoint_of_another_text_encoder(fails, source, backbones):
    message = fails("--checkpoint", str(source), "--text_encoder", str(backbones["roberta"]))
    assert "another text encoder" in message


def test_checkpoint_of_texts_read_elsewhere(fails, source):
    message = fails("--checkpoint", str(source), "--text_pooling", "mean")
    assert "was trained with --text_pooling cls, this run has text_pooling mean; give --text_pooling cls" in message


def test_checkpoint_of_another_item_tower(fails, source):
    assert "give --item_tower text" in fails("--checkpoint", str(source), "--item_tower", "id", method="full")


def test_checkpoint_of_another_method(fails, source, flags, tmp_path):
    adapted = tmp_path / "adapted"
    run([*flags, "--output", str(adapted), "--checkpoint", str(source), "--epochs", "1"], "houlsby")
    message = fails("--checkpoint", str(adapted))
    assert "holds only the adapters of method houlsby" in message and str(source) in message


def test_truncated_checkpoint(fails, source):
    best = source / "checkpoints" / "best.safetensors"
    for size in (best.stat().st_size - 10, 5, 0):
        best.write_bytes(best.read_bytes()[:size])
        assert "best.safetensors: truncated or damaged" in fails("--checkpoint", str(source))


def test_checkpoint_that_is_not_finite(fails, source):
    name = "projection.bias"
    damage(source / "checkpoints" / "best.safetensors", f"item_encoder.{name}", float("nan"))
    assert f"best.safetensors: the tensor item_encoder.{name} holds NaN" in fails("--checkpoint", str(source))
    damage(source / "checkpoints" / "last.safetensors", f"optimizer.exp_avg.item_encoder.{name}", float("inf"))
    with pytest.raises(
        TransrecError, match=rf"last.safetensors: the tensor optimizer.exp_avg.item_encoder.{name} holds"
    ):
        run(["--resume", str(source)])


def test_original_checkpoint_that_is_not_finite(fails, tmp_path):
    state = {"user_encoder.transformer_encoder.position_embedding.weight": torch.full((6, 16), torch.inf)}
    torch.save({"model_state_dict": state}, tmp_path / "epoch-3.pt")
    message = fails("--checkpoint", str(tmp_path / "epoch-3.pt"))
    assert f"epoch-3.pt: the tensor {next(iter(state))} holds NaN or infinity" in message


def test_checkpoint_that_is_none(fails, source, backbones, tmp_path):
    assert "not a checkpoint written by transrec" in fails("--checkpoint", str(backbones["bert"] / "model.safetensors"))
    state = source / "checkpoints" / "last.safetensors"
    assert "is a run's state, which only --resume reads" in fails("--checkpoint", str(state))
    tensors, description = checkpoint.read(source / "checkpoints" / "best.safetensors")
    save_file(
        tensors, tmp_path / "new.safetensors", metadata={"transrec": json.dumps(description.as_dict() | {"format": 99})}
    )
    assert "checkpoint format 99" in fails("--checkpoint", str(tmp_path / "new.safetensors"))


def test_output_that_cannot_be_written(fails, tmp_path):
    # Root may write to read-only folders, so an impossible path is used: below a file.
    (tmp_path / "file").write_text("")
    message = fails("--output", str(tmp_path / "file" / "run"))
    assert "cannot write there" in message and "--output" in message


def test_read_only_output(flags, domain):
    if not Path("/proc/self").exists():
        pytest.skip("needs a folder that even root cannot write to")
    with pytest.raises(TransrecError, match=r"/proc/run.*cannot write there"):
        run([*flags, "--output", "/proc/run"])


def test_a_run_that_another_process_is_running(flags, tmp_path):
    run([*flags, "--output", str(tmp_path / "run"), "--epochs", "1", "--keep_state"])
    with (
        closing(Run(tmp_path / "run", resume=True)),
        pytest.raises(TransrecError, match="another process is running this run"),
    ):
        run(["--resume", str(tmp_path / "run"), "--epochs", "2"])
    assert run(["--resume", str(tmp_path / "run"), "--epochs", "2"])["epochs_trained"] == 2


def test_a_failed_start_leaves_no_folder_and_can_be_repeated(fails, tmp_path, flags):
    fails("--text_encoder", "no-such-bert")
    assert not (tmp_path / "run").exists()
    run([*flags, "--output", str(tmp_path / "run"), "--epochs", "1"])


def test_dataset_json_that_is_wrong(fails, dataset):
    (dataset / "dataset.json").write_text('{"users": 3}')
    assert "dataset.json: 'users' is 3; it must be a file's name" in fails()
    (dataset / "dataset.json").write_text("[")
    assert "dataset.json: not JSON like" in fails()


def test_unknown_flag(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["adapter.py", "--wierd", "3"])
    with pytest.raises(SystemExit) as exit_:
        runner.adapt("houlsby")
    assert exit_.value.code == 2 and capsys.readouterr().err == "error: --wierd: no such flag; --help-all lists them\n"


def test_output_that_holds_a_run(fails, source):
    assert f"holds a run already; continue it with --resume {source}" in fails("--output", str(source))


def test_resume_of_nothing_and_with_other_options(source, tmp_path):
    def fails(*arguments):
        with pytest.raises(TransrecError) as caught:
            run(list(arguments))
        return str(caught.value)

    assert "holds no run" in fails("--resume", str(tmp_path / "nothing"))
    assert "say which run" in fails("--resume")
    assert "name two runs" in fails("--resume", str(source), "--output", str(tmp_path / "other"))
    message = fails("--resume", str(source), "--lr", "0.5")
    assert "cannot be resumed with" in message and "--lr 0.5 (was 0.0001)" in message
    run(["--resume", str(source), "--epochs", "3"])
    assert "--epochs 2: the run has begun epoch 3 already" in fails("--resume", str(source), "--epochs", "2")


def test_resume_after_the_data_changed(flags, dataset, tmp_path):
    flags = [*flags, "--dataset", str(dataset)]
    run([*flags, "--output", str(tmp_path / "run")])
    spoil(dataset / "items.tsv", 1, "S00000\tanother title")
    with pytest.raises(TransrecError, match=r"items.tsv: has changed since .* was started"):
        run(["--resume", str(tmp_path / "run"), "--epochs", "3"])


def test_resume_after_the_data_moved(flags, dataset, tmp_path):
    run([*flags, "--dataset", str(dataset), "--keep_state", "--output", str(tmp_path / "run")])
    moved = dataset.rename(dataset.with_name("moved"))
    run(["--resume", str(tmp_path / "run"), "--dataset", str(moved), "--epochs", "3"])
    assert json.loads((tmp_path / "run" / "options.json").read_text())["dataset"] == str(moved)
    spoil(moved / "items.tsv", 1, "S00000\tanother title")
    with pytest.raises(TransrecError, match=r"moved/items.tsv: has changed since .* was started"):
        run(["--resume", str(tmp_path / "run"), "--epochs", "4"])


def test_hidden_files_of_the_user_stay(tmp_path):
    notes, left = tmp_path / ".mytmp-notes", tmp_path / ".options.json.77.tmp"
    for path in (notes, left):
        path.touch()
    Run(tmp_path).close()
    assert notes.exists() and not left.exists()


def test_device_that_is_not_there(fails):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "--device cuda:" in fails("--device", "cuda")


def test_a_message_and_status_2_from_the_shell(tmp_path):
    command = [sys.executable, str(SCRIPT), "--dataset", str(tmp_path / "x"), "--output", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
