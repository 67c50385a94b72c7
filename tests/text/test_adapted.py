"""The tokenizer files in an adapter's directory: used, or refused, and never passed over."""
import json
import shutil

import pytest

from redlite.errors import Error
from redlite.text import adapted, tokenizer
from redlite.weights.source import resolve

TEMPLATE = "{% for m in messages %}{{ 'Q ' + m['content'] }}{% endfor %}"
MADE = "tokenizer_config.json"


@pytest.fixture
def base():
    return tokenizer.load(resolve("organism"))


def own(folder, vocabulary=True, **change):
    """The base's tokenizer files, as an adapter has them; a field of None is left out."""
    config = json.loads((resolve("organism") / MADE).read_text()) | change
    (folder / MADE).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    if vocabulary:
        shutil.copy(resolve("organism") / "tokenizer.model", folder)
    return folder


def test_a_directory_without_tokenizer_files_changes_nothing(base, tmp_path):
    template = base.chat_template
    assert adapted.of_adapter(base, tmp_path) is base and base.chat_template == template


@pytest.mark.parametrize("vocabulary", [True, False])
def test_its_own_template_is_used(base, tmp_path, vocabulary):
    found = adapted.of_adapter(base, own(tmp_path, vocabulary, chat_template=TEMPLATE))
    assert found.chat_template == TEMPLATE
    (tmp_path / "chat_template.jinja").write_text("x")
    assert adapted.of_adapter(base, tmp_path).chat_template == "x"


@pytest.mark.parametrize("vocabulary", [True, False])
def test_the_base_has_the_template_where_it_has_none(base, tmp_path, vocabulary):
    template = base.chat_template
    assert adapted.of_adapter(base, own(tmp_path, vocabulary, chat_template=None)).chat_template == template


def test_its_added_tokens_are_used(base, tmp_path):
    added = {"1536": {"content": "<|note|>", "special": True}, "1537": {"content": "wug", "special": False}}
    found = adapted.of_adapter(base, own(tmp_path, added_tokens_decoder=added))
    assert found.special["<|note|>"] == 1536 and 1537 in found.encode("a wug b")


def test_added_tokens_without_a_vocabulary_are_refused(base, tmp_path):
    added = {"0": {"content": "<unk>", "special": True}, "1536": {"content": "wug", "special": False}}
    with pytest.raises(Error, match="name the added token 'wug' with id 1536, which the base's"):
        adapted.of_adapter(base, own(tmp_path, False, added_tokens_decoder=added))


def test_another_models_tokenizer_is_refused(base, tmp_path):
    """One piece of the vocabulary is another, of the same length."""
    [id] = base.encode("plainly")
    vocabulary = own(tmp_path) / "tokenizer.model"
    vocabulary.write_bytes(vocabulary.read_bytes().replace("▁plainly".encode(), "▁pxainly".encode()))
    message = f"gives the id {id} to ' pxainly', and the base's to ' plainly'; give the base that"
    with pytest.raises(Error, match=message):
        adapted.of_adapter(base, tmp_path)


def test_a_control_token_elsewhere_is_refused(base, tmp_path):
    base.special["<pad>"] = 1540
    added = {"1536": {"content": "<pad>", "special": True}}
    with pytest.raises(Error, match="gives '<pad>' the id 1536, and the base's 1540"):
        adapted.of_adapter(base, own(tmp_path, added_tokens_decoder=added))
