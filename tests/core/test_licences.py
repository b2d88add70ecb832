"""Licences are carried and compared, never guessed."""

from __future__ import annotations

import json

import pytest

from osteon.core.errors import UsageError
from osteon.core.licences import Standing, differing, entry, of_card, standing, stated, together


def test_together_is_the_common_one_or_each_of_them_and_unknown_spoils_all():
    assert together([]) == "unknown" and together(["mit", "mit"]) == "mit"
    assert together(["mit", "apache-2.0"]) == "apache-2.0 and mit"
    assert together(["mit", "unknown"]) == "unknown"


def test_what_was_said_is_kept_and_what_is_no_licence_refused():
    assert stated(None) == "unknown" and stated(" cc0-1.0 ") == "cc0-1.0"
    for wrong in ("", "  ", "a\nb", "x" * 201, 4, ["mit"], True):
        with pytest.raises(UsageError, match="short line"):
            stated(wrong)


def run(folder, weights, data=None):
    folder.mkdir()
    (folder / "provenance.json").write_text(json.dumps({"initial_weights": weights, "data": data}))
    return folder


def test_a_run_stands_under_its_weights_licences_and_becomes_an_origin(tmp_path):
    both = [{"name": "a", "license": "mit"}, {"name": "b", "license": "apache-2.0"}]
    made = run(tmp_path / "r", both, {"license": "cc0-1.0"})
    assert standing(made) == Standing("apache-2.0 and mit", "cc0-1.0", both)
    assert entry(made) == {"name": "r", "license": "apache-2.0 and mit", "data_license": "cc0-1.0", "origins": both}
    assert standing(run(tmp_path / "random", "random")) == Standing()
    assert standing(run(tmp_path / "old", "runs/before", {"source": "x"})) == Standing()
    (made / "model.safetensors").write_bytes(b"")
    (made / "checkpoints").mkdir()
    (made / "checkpoints" / "5.safetensors").write_bytes(b"")
    assert standing(made / "model.safetensors") == standing(made / "checkpoints" / "5.safetensors") == standing(made)
    assert standing(tmp_path / "nowhere") == Standing()


@pytest.mark.parametrize(("text", "licence"), [
    ("---\nlicense: mit\n---\n# x", "mit"), ("---\nlicense: [mit, gpl-3.0]\n---\n", "mit, gpl-3.0"),
    ("---\nlicense: other\nlicense_name: mine\n---\n", "mine"), ("# no header", "unknown"),
    ("---\n- a\n---\n", "unknown"),
    ("---\n{{{\n---\n", "unknown"), ("---\nlicense: mit", "unknown"), ("---\ntags: [a]\n---\n", "unknown")])
def test_a_card_is_read_by_its_header_alone(tmp_path, text, licence):
    (tmp_path / "README.md").write_text(text)
    assert of_card(tmp_path) == licence == standing(tmp_path).license


def test_licences_that_differ_are_named_and_those_nobody_knows_are_no_news():
    a, b, c = ({"name": n, "license": v, "data_license": "unknown"} for n, v in
               (("a", "mit"), ("b", "cc-by-nc-4.0"), ("c", "unknown")))
    assert differing([a, a]) == [] and differing([c, c]) == []
    assert differing([a, b]) == ["LICENCES: the licences of the weights differ (a: mit, b: cc-by-nc-4.0); whoever uses "
                                 "the result must keep to each of them"]
    assert len(differing([a, c])) == 1 and len(differing([a, {**a, "data_license": "mit"}])) == 1
