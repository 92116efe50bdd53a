"""Reading datasets, the split, batches, tokens."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transrec.data.batches import Sampler, TrainingBatches
from transrec.data.catalog import Tokens, cached_tokens, read_catalog
from transrec.data.dataset import find_file, load_dataset
from transrec.data.features import TextFeatures
from transrec.data.interactions import Interactions, Sequences, evaluate_on, leave_one_out, train_on_fraction
from transrec.errors import TransrecError
from transrec.models.backbone import load_tokenizer


def interactions_of(lists: list[list[int]]) -> Interactions:
    stops = np.cumsum([len(x) for x in lists])
    starts = stops - [len(x) for x in lists]
    values = np.array([item for x in lists for item in x], dtype=np.int32)
    return Interactions("memory", [str(u) for u in range(len(lists))], Sequences(values, starts, stops))


user_lists = st.lists(st.lists(st.integers(0, 30), min_size=0, max_size=15), min_size=1, max_size=12)


@given(user_lists, st.integers(1, 8), st.integers(3, 6))
def test_split_is_leave_one_out(lists, max_seq_len, min_seq_len):
    kept = [x[-(max_seq_len + 3) :] for x in lists if len(x) >= min_seq_len]
    if not kept:
        with pytest.raises(TransrecError, match="min_seq_len"):
            leave_one_out(interactions_of(lists), max_seq_len, min_seq_len)
        return
    number = {row: i + 1 for i, row in enumerate(sorted({item for x in kept for item in x}))}
    split = leave_one_out(interactions_of(lists), max_seq_len, min_seq_len)
    assert split.item_rows.tolist() == sorted(number)
    for user, items in enumerate(kept):
        s = [number[item] for item in items]
        assert split.train[user].tolist() == s[:-2]
        assert split.validation[user].tolist() == s[-(max_seq_len + 2) : -1]
        assert split.test[user].tolist() == s[-(max_seq_len + 1) :]
        assert split.history("validation")[user].tolist() == s[:-2]
        assert split.history("test")[user].tolist() == s[:-1]
    expected = np.zeros(split.item_count + 1, int)
    for items in kept:
        for item in items[:-2]:
            expected[number[item]] += 1
    np.testing.assert_array_equal(split.train_counts(), expected)


def test_a_sample_of_the_users_is_evaluated_and_all_train():
    names, lists = [f"user {u}" for u in range(50)], [[(u * 7 + k) % 40 for k in range(6)] for u in range(50)]
    whole = leave_one_out(interactions_of(lists), 6, 5)
    some, more = evaluate_on(whole, names, 10, 0), evaluate_on(whole, names, 30, 0)
    drawn = some.evaluated_users
    assert len(drawn) == 10 and set(drawn) < set(more.evaluated_users) != set(
        evaluate_on(whole, names, 30, 1).evaluated_users
    )
    assert set(drawn) != set(train_on_fraction(whole, names, 0.2, 0).training_users), (
        "drawn apart from who is trained on"
    )
    np.testing.assert_array_equal(some.train_counts(), whole.train_counts())
    for part in ("validation", "test"):
        np.testing.assert_array_equal(some.targets(part)[0], drawn)
        for sampled, everyone in (
            (some.up_to_targets(part), whole.up_to_targets(part)),
            (some.history(part), whole.history(part)),
        ):
            assert [each.tolist() for each in sampled] == [everyone[user].tolist() for user in drawn]
    # Only one of 50 users has a test target.
    late = dataclasses.replace(whole, test_starts=np.where(np.arange(50) == 7, whole.test_starts, whole.kept.stops))
    with pytest.raises(TransrecError, match="--eval_users 2: no user of the sample has a test target; give more"):
        evaluate_on(late, names, 2, 0)


def test_a_fraction_of_the_users_trains_and_all_are_ranked():
    lists = [[(u * 7 + k) % 40 for k in range(6)] for u in range(50)]
    names = [f"user {u}" for u in range(50)]
    whole = leave_one_out(interactions_of(lists), 6, 5)

    def trained(fraction, seed=0, order=None):
        order = list(range(50)) if order is None else order
        split = leave_one_out(interactions_of([lists[u] for u in order]), 6, 5)
        part = train_on_fraction(split, [names[u] for u in order], fraction, seed)
        return part, {names[order[u]] for u in part.training_users}

    (tenth, few), (half, many) = trained(0.1), trained(0.5)
    assert (len(few), len(many)) == (5, 25) and few < many, "nested"
    assert trained(0.5, seed=1)[1] != many
    assert trained(0.5, order=list(reversed(range(50))))[1] == many, "whatever the order of the file"
    assert len(trained(0.001)[1]) == 1
    for part in (tenth, half):
        assert part.item_count == whole.item_count and len(part.train) == len(part.training_users)
        for name in ("validation", "test"):
            assert [x.tolist() for x in getattr(part, name)] == [x.tolist() for x in getattr(whole, name)]
            assert [x.tolist() for x in part.history(name)] == [x.tolist() for x in whole.history(name)]
        assert part.train_counts().sum() == 4 * len(part.training_users)
        batches = list(TrainingBatches(part, 4, negatives=True, last_only=False, seed=0).epoch(1))
        assert sum(len(batch.sequences) for (batch,) in batches) == len(part.training_users)


@given(user_lists.filter(any), st.integers(1, 8))
def test_sequences_padded_and_flat(lists, width):
    sequences = interactions_of(lists).sequences
    padded = sequences.last(width)
    for row, items in zip(padded, lists, strict=True):
        tail = items[-width:]
        assert row.tolist() == [0] * (width - len(tail)) + tail
    backwards = np.arange(len(lists))[::-1]
    values, owner = sequences.flat(backwards), sequences.owners(backwards)
    assert values.tolist() == [item for x in lists[::-1] for item in x]
    assert owner.tolist() == [u for u, x in enumerate(lists[::-1]) for _ in x]


@given(st.integers(5, 20), st.integers(0, 2**31))
def test_negatives_are_outside_the_sequence(item_count, seed):
    rng = np.random.default_rng(seed)
    sequences = rng.integers(0, item_count, size=(6, 5))
    negatives = Sampler(item_count).draw_outside(rng, sequences)
    assert negatives.shape == (6, 4)
    assert negatives.min() >= 1 and negatives.max() <= item_count
    assert not (negatives[:, :, None] == sequences[:, None, :]).any()


def test_negatives_are_uniform():
    sequence = np.array([[0, 7, 2, 2, 9]])
    allowed = [1, 3, 4, 5, 6, 8, 10]
    drawn = Sampler(10).draw_outside(np.random.default_rng(0), np.repeat(sequence, 20_000, axis=0))
    shares = np.bincount(drawn.ravel(), minlength=11) / drawn.size
    assert shares[[i for i in range(11) if i not in allowed]].sum() == 0
    # 80,000 draws: the standard deviation of a share of 1/7 is 0.0012.
    np.testing.assert_allclose(shares[allowed], 1 / 7, atol=0.006)


@pytest.fixture
def split(domain):
    return load_dataset(domain, 6, 5).split


@pytest.mark.parametrize("negatives,last_only", [(True, False), (True, True), (False, False)])
def test_a_batch_holds_each_real_item_once(split, negatives, last_only):
    batches = TrainingBatches(split, 8, negatives, last_only, seed=0)
    seen = []
    for (batch,) in batches.epoch(1):
        items = torch.cat([torch.zeros(1, dtype=torch.long), batch.items])
        assert (batch.items.diff() > 0).all() and batch.items[0] > 0
        used = torch.cat([batch.sequences.flatten(), batch.negatives.flatten()]).unique()
        assert used[used > 0].tolist() == list(range(1, len(items)))
        mask = batch.mask.clone()
        mask[:, :-1] &= not last_only
        assert ((batch.negatives > 0) == (mask & negatives)).all()
        assert batch.predictions == mask.sum()
        for row, negative in zip(items[batch.sequences], items[batch.negatives], strict=True):
            assert not set(row[row > 0].tolist()) & set(negative[negative > 0].tolist())
        seen += [tuple(row[row > 0].tolist()) for row in items[batch.sequences]]
    assert sorted(seen) == sorted(tuple(split.train[u].tolist()) for u in range(len(split.train)))


@given(ranks=st.integers(1, 4), pieces=st.integers(1, 3), batch_size=st.integers(1, 13))
def test_ranks_and_pieces_share_one_global_batch(ranks, pieces, batch_size):
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 30, rng.integers(5, 9)).tolist() for _ in range(11)]
    split = leave_one_out(interactions_of(lists), 6, 5)

    def batches(rank, ranks, pieces):
        return list(TrainingBatches(split, batch_size, True, False, 1, rank, ranks, pieces).epoch(2))

    def rows(batch):
        items = torch.cat([torch.zeros(1, dtype=torch.long), batch.items])
        return torch.cat([items[batch.sequences], items[batch.negatives]], dim=1) if batch.weight else items[:0, None]

    shares = [batches(rank, ranks, pieces) for rank in range(ranks)]
    for step, (whole,) in enumerate(batches(0, 1, 1)):
        parts = [piece for share in shares for piece in share[step]]
        assert len(parts) == ranks * pieces
        assert {piece.predictions for piece in parts} == {whole.predictions}
        together = torch.cat([rows(piece) for piece in parts if piece.weight])
        assert torch.equal(together, rows(whole))


def test_epochs_differ_and_repeat(split):
    batches = TrainingBatches(split, 8, True, False, seed=0)

    def epoch(number, first_step=0):
        return [batch.items.tolist() for (batch,) in batches.epoch(number, first_step)]

    assert epoch(1) == epoch(1)
    assert epoch(1) != epoch(2)
    assert epoch(1, first_step=3) == epoch(1)[3:]


def test_a_user_with_every_item_leaves_no_negative():
    split = leave_one_out(interactions_of([[0, 1, 2, 0, 1], [0, 1, 2, 2, 1]]), 6, 5)
    with pytest.raises(TransrecError, match="in_batch"):
        TrainingBatches(split, 2, negatives=True, last_only=False, seed=0)
    TrainingBatches(split, 2, negatives=False, last_only=False, seed=0)


def test_text_features_cut_common_padding():
    tokens = Tokens(np.array([[5, 6, 0, 0], [5, 0, 0, 0], [5, 6, 7, 0]], np.int32), np.array([2, 1, 3], np.int32))
    features = TextFeatures(tokens, rows=np.array([0, 2, 1]))
    input_ids, attention_mask = features.inputs(torch.tensor([1, 3]))
    assert input_ids.tolist() == [[5, 6], [5, 0]]
    assert attention_mask.tolist() == [[1, 1], [1, 0]]
    assert features.inputs(torch.tensor([2]))[0].tolist() == [[5, 6, 7]]


class CountingTokenizer:
    """A tokenizer that counts its calls."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, 0
        self.backend_tokenizer = tokenizer.backend_tokenizer

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.tokenizer(*args, **kwargs)


def test_tokens_are_cached_by_content(domain, backbones, tmp_path):
    folder = shutil.copytree(domain, tmp_path / "set", ignore=shutil.ignore_patterns(".transrec"))
    tokenizer = CountingTokenizer(load_tokenizer(backbones["bert"]))

    def tokens(length=10, lower_case=True):
        return cached_tokens(read_catalog(folder / "items.tsv"), tokenizer, length, lower_case)

    first = tokens()
    assert tokenizer.calls == 1
    again = tokens()
    assert tokenizer.calls == 1
    np.testing.assert_array_equal(first.input_ids, again.input_ids)
    tokens(length=8)
    tokens(lower_case=False)
    assert tokenizer.calls == 3
    # A changed title, and a damaged cache.
    items = (folder / "items.tsv").read_text()
    (folder / "items.tsv").write_text(items.replace(" ", " red ", 1))
    assert not np.array_equal(tokens().input_ids, first.input_ids)
    (folder / "items.tsv").write_text(items)
    for cache in (folder / ".transrec").glob("tokens-*"):
        cache.write_bytes(cache.read_bytes()[:-7])
    np.testing.assert_array_equal(tokens().input_ids, first.input_ids)
    assert tokenizer.calls == 5


def test_tokens_of_a_read_only_dataset_go_to_the_user_cache(domain, backbones, tmp_path, monkeypatch):
    folder = shutil.copytree(domain, tmp_path / "set", ignore=shutil.ignore_patterns(".transrec"))
    # Root may write anywhere, so the folder is made impossible instead of forbidden.
    (folder / ".transrec").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokenizer = CountingTokenizer(load_tokenizer(backbones["bert"]))
    for _ in range(2):
        cached_tokens(read_catalog(folder / "items.tsv"), tokenizer, 10, True)
    assert tokenizer.calls == 1
    assert list((tmp_path / "cache" / "transrec").glob("tokens-*.safetensors"))


def test_files_are_found_by_name_by_description_and_by_flag(tmp_path):
    for name in ("a_users.tsv", "my_news.tsv", "other_behaviors.tsv"):
        (tmp_path / name).write_text("")
    assert find_file(tmp_path, "items").name == "my_news.tsv"
    with pytest.raises(TransrecError, match=r"a_users.tsv, other_behaviors.tsv; name it with --users_file"):
        find_file(tmp_path, "users")
    assert find_file(tmp_path, "users", "a_users.tsv").name == "a_users.tsv"
    (tmp_path / "dataset.json").write_text('{"users": "other_behaviors.tsv"}')
    assert find_file(tmp_path, "users").name == "other_behaviors.tsv"
    assert find_file(tmp_path, "items").name == "my_news.tsv"


def test_titles_keep_odd_line_separators_and_a_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "items.tsv"
    path.write_bytes("\ufeffa\tone\u2028two\u0085three\r\n\nb\tfour\tabstract\n".encode())
    catalog = read_catalog(path)
    assert catalog.ids == ["a", "b"]
    assert catalog.texts == ["one\u2028two\u0085three", "four"]


def test_a_header_names_the_columns_of_an_items_file(tmp_path):
    path = tmp_path / "items.tsv"
    rows = "a\tAcme\tRed lamp\nb\t\tBlue chair\nc\tBel\nd\n"
    path.write_text(f"Item ID:token\tBrand:token\tTitle:token_seq\n{rows}")
    catalog = read_catalog(path)
    assert (catalog.ids, catalog.columns) == ([*"abcd"], ["item id", "brand", "title"])
    assert catalog.texts == ["Red lamp", "Blue chair", "", ""]
    # An item whose columns are all empty has no text, whatever else the template contains.
    assert catalog.with_text("{Title}. By { brand }{{}}").texts == [
        *("Red lamp. By Acme{}", "Blue chair. By {}", ". By Bel{}", ""),
    ]
    assert catalog.with_text("brand").texts == ["Acme", "", "Bel", ""]
    assert catalog.with_text("{item id}").texts == [*"abcd"]
    path.write_text(rows)
    plain = read_catalog(path)
    assert (plain.texts, plain.columns) == (["Acme", "", "Bel", ""], ["item_id", "title", "abstract"])
    assert plain.with_text("{abstract}").texts == ["Red lamp", "Blue chair", "", ""]


def test_tokens_are_cached_by_what_is_read_of_the_columns(domain, backbones, tmp_path):
    path = tmp_path / "items.tsv"
    path.write_text("item_id\tbrand\ttitle\na\tacma\tred lamp\nb\tbelton\tblue chair\n")
    tokenizer = CountingTokenizer(load_tokenizer(backbones["bert"]))

    def tokens(text):
        return cached_tokens(read_catalog(path).with_text(text), tokenizer, 8, True).input_ids

    texts = ["title", "brand", "{title}", "{brand} {title}", "{title} {brand}"]
    first = [tokens(text) for text in texts]
    assert tokenizer.calls == len(texts) == len(list((tmp_path / ".transrec").iterdir()))
    for text, expected in zip(texts, first, strict=True):
        np.testing.assert_array_equal(tokens(text), expected)
    assert tokenizer.calls == len(texts)
    np.testing.assert_array_equal(first[0], first[2])
    assert not np.array_equal(first[3], first[4])
