"""The report on a study: files, sentences made from figures, tables in all forms, plots, and the page."""

import base64
import csv
import html
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from tiny_study import make_outcomes, make_selection

from tfcam_jax.metrics.tables import probability
from tfcam_jax.study import plots
from tfcam_jax.study.page import SCREEN_WIDTH, screen, write_study
from tfcam_jax.study.plots import arm_looks, draw_agreement, draw_alpha, draw_auroc, draw_study, theme
from tfcam_jax.study.statistics import StudyError, study_statistics
from tfcam_jax.study.tables import overview, set_tables
from tfcam_jax.study.verdicts import outcome_word, summary, verdict

STRENGTHS = {"cross_entropy": 0.5, "cyborg": 1.0, "opposed": 4.0, "difference": 0.6, "cyborg_mean_map": 1.0}
PLACEBOS = {"cyborg": ["cyborg_mean_map"]}
PROVENANCE = {
    "command": ["launch/compare.py", "--config=configs/demo.py"],
    "commit": "0123abc",
    "packages": {"jax": "0.10.2"},
    "config": {"title": "</script><b>not bold</b>"},
}
FILES = ["comparisons.csv", "index.html", "seeds.csv", "study.json", "table.csv", "table.md", "table.txt"]


@pytest.fixture(scope="module")
def outcomes():
    return make_outcomes(STRENGTHS, seeds=8, images=80, groups=20, sets=("val", "open", "closed"))


@pytest.fixture(scope="module")
def few(outcomes):
    return [o for o in outcomes if o.arm in ("cyborg", "opposed") and o.set == "open"]


@pytest.fixture(scope="module")
def written(outcomes, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "report"
    selection = make_selection(STRENGTHS, sets=("open", "closed"))
    study = write_study(out, outcomes, selection, PROVENANCE, placebos=PLACEBOS, resamples=100)
    return out, study


@pytest.fixture(scope="module")
def page(written):
    return (written[0] / "index.html").read_text(encoding="utf-8")


def an_entry(**options):
    comparison = {
        "arm": "difference",
        "other": "cyborg",
        "against": "reference",
        "kind": "reconstruction",
        "other_kind": "",
        "seeds": [0, 1, 2, 3, 4, 5, 6, 7],
        "unpaired": [],
        "difference": {"mean": 0.0123, "bootstrap": [-0.0042, 0.0281], "interval": [-0.9, 0.9]},
        "p_seeds": 0.131,
        "smallest_p_seeds": 0.0078125,
        "p_groups": 0.21,
        "p_holm": 0.39,
        "significant": False,
    } | options
    entry = {"protocol": "published", "set": "open", "images": 9, "groups": 9, "folds": [""], "missing": []}
    return entry | {"arms": [an_arm("cyborg", len(comparison["seeds"]))], "comparisons": [comparison]}


def an_arm(name, seeds):
    return {"arm": name, "seeds": list(range(seeds)), "incomplete": []}


def test_report_holds_its_files(written):
    out, study = written
    plots = [f"plot_{name}_published.png" for name in ("agreement", "alpha", "auroc")]
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, *plots])
    assert json.loads((out / "study.json").read_text()) == study
    for name in plots:
        with Image.open(out / name) as picture:
            picture.load()
            assert min(picture.size) > 400


def test_csv_holds_the_figures_of_every_seed(written, outcomes):
    with (written[0] / "seeds.csv").open() as file:
        rows = {(r["set"], r["arm"], int(r["seed"])): r for r in csv.DictReader(file)}
    assert len(rows) == len(outcomes)
    for outcome in outcomes:
        row = rows[outcome.set, outcome.arm, outcome.seed]
        for name, value in outcome.metrics.items():
            assert float(row[name]) == pytest.approx(value)


def test_csv_of_arms_and_of_comparisons(written, outcomes):
    out, study = written
    with (out / "table.csv").open() as file:
        rows = {(r["set"], r["arm"]): r for r in csv.DictReader(file)}
    values = [o.metrics["auroc"] for o in outcomes if (o.arm, o.set) == ("opposed", "open")]
    row = rows["open", "opposed"]
    assert float(row["auroc_mean"]) == pytest.approx(np.mean(values)) and row["kind"] == "reconstruction"
    assert rows["open", "cyborg_mean_map"]["kind"] == "placebo" and rows["open", "cross_entropy"]["alpha"] == ""
    assert float(row["auroc_bootstrap_low"]) < float(row["auroc_mean"]) < float(row["auroc_bootstrap_high"])
    with (out / "comparisons.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == sum(len(entry["comparisons"]) for entry in study["statistics"]) == 8


def test_text_and_markdown_say_the_same(written):
    out, study = written
    text, markdown = ((out / name).read_text(encoding="utf-8") for name in ("table.txt", "table.md"))
    squeezed = re.sub(r"  +", " ", text)
    for line in markdown.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert " ".join(cells) in squeezed
        elif line.startswith("- "):
            assert line in text
    blocks = re.findall(r"(?:^\|.*\n?)+", markdown, flags=re.M)
    # At a glance, arms, maps, correlations and seeds of three sets, comparisons of two, the choice of alpha.
    assert len(blocks) == 1 + 3 * 4 + 2 + 1
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1
    for entry in study["statistics"]:
        for comparison in entry["comparisons"]:
            assert verdict(entry, comparison) in text


def test_the_overview_has_the_figures_of_the_test_sets(written, outcomes, page):
    (table,) = overview(written[1])
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert table.header[2:5] == ("closed AUROC", "open AUROC", "minus cyborg")
    assert list(rows)[-2:] == ["opposed (reconstruction)", "difference (reconstruction)"] and len(rows) == 5
    for arm, name in {"opposed": "opposed (reconstruction)", "cyborg": "cyborg"}.items():
        for of in ("closed", "open"):
            values = [o.metrics["auroc"] for o in outcomes if (o.arm, o.set) == (arm, of)]
            assert rows[name][f"{of} AUROC"] == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
        agreement = [o.metrics["cc_difference"] for o in outcomes if (o.arm, o.set) == (arm, "open")]
        assert rows[name]["CC D"] == f"{np.mean(agreement):.2f}"
    entry = next(entry for entry in written[1]["statistics"] if entry["set"] == "open")
    found = next(c for c in entry["comparisons"] if (c["arm"], c["other"]) == ("opposed", "cyborg"))
    opposed = rows["opposed (reconstruction)"]
    assert opposed["minus cyborg"] == f"{found['difference']['mean']:+.3f}" > "+0.1"
    assert opposed["Holm"] == probability(found["p_holm"])
    for name in ("cyborg", "cyborg_mean_map (placebo)"):
        assert rows[name]["minus cyborg"] == rows[name]["p groups"] == "-"
    assert page.count(f"<td>{opposed['open AUROC']}</td>") == 1


def test_the_overview_of_one_seed_and_of_arms_without_a_set(outcomes):
    lone = [o for o in outcomes if o.seed == 0 and (o.arm, o.set) != ("opposed", "closed")]
    (table,) = overview({"statistics": study_statistics(lone, "cyborg", {}, None, 20), "reference": "cyborg"})
    rows = {row[0]: row for row in table.rows}
    assert re.fullmatch(r"0\.\d{3}", rows["cyborg"][2]) and rows["opposed (reconstruction)"][2] == "-"
    alone = [o for o in outcomes if o.set == "val"]
    assert overview({"statistics": study_statistics(alone, "cyborg", {}, None, 20), "reference": "cyborg"}) == []


def test_reconstructions_are_called_so_everywhere(written, page):
    for name in ("table.txt", "table.md"):
        text = (written[0] / name).read_text(encoding="utf-8")
        for line in text.splitlines():
            if line.lstrip("| ").startswith(("opposed", "difference", "contrast")):
                assert "(reconstruction)" in line
    assert "opposed (reconstruction)" in page and "cyborg_mean_map (placebo)" in page
    assert not re.search(r"<td>(opposed|difference|contrast)</td>", page)


def test_domains_of_a_test_have_a_table_of_their_own(outcomes):
    """Means over seeds by hand; nine domains make two tables, whatever their names are."""
    names = [f"kind/{i}" for i in range(9)]
    chosen = [each for each in outcomes if each.set == "open"]
    value = lambda outcome, i: 0.5 + 0.01 * i + 0.001 * outcome.seed
    told = [each._replace(by_domain={name: value(each, i) for i, name in enumerate(names)}) for each in chosen]
    (entry,) = study_statistics(told, resamples=10)
    tables = [table for table in set_tables(entry) if "by domain" in table.title]
    assert [table.header for table in tables] == [("arm", *names[:8]), ("arm", names[8])]
    seeds = [each.seed for each in chosen if each.arm == "cyborg"]
    expected = f"{0.5 + 0.001 * np.mean(seeds):.3f} ± {np.std(np.multiply(seeds, 0.001), ddof=1):.3f}"
    assert next(row for row in tables[0].rows if row[0] == "cyborg")[1] == expected
    (plain,) = study_statistics(chosen, resamples=10)
    assert not any("by domain" in table.title for table in set_tables(plain))


def test_how_agreement_goes_with_the_auroc(written, outcomes):
    """Pearson's r over an arm's seeds, over all runs, and over all with each arm's mean taken away."""
    entry = next(entry for entry in written[1]["statistics"] if entry["set"] == "open")
    *_, table = set_tables(entry)
    assert table.header == ("arm", "points", "CC T", "CC U", "CC D")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows.keys() >= {"cyborg", "opposed (reconstruction)", "means of the arms"} and len(rows) == 5 + 3
    points = {arm: np.array([(o.metrics["cc_false"], o.metrics["auroc"]) for o in outcomes
                             if (o.arm, o.set) == (arm, "open")]) for arm in STRENGTHS}  # fmt: skip
    r = lambda points: f"{np.corrcoef(np.transpose(points))[0, 1]:+.2f}"
    assert (rows["cyborg"][0], rows["means of the arms"][0]) == ("8", "5")
    assert rows["cyborg"][2] == r(points["cyborg"])
    assert rows["all runs as they are"][:3:2] == ("40", r(np.concatenate(list(points.values()))))
    centred = np.concatenate([own - own.mean(0) for own in points.values()])
    assert rows["all, each arm's mean taken away"][2] == r(centred)


def test_tables_of_arms_and_maps_are_narrow(written):
    for entry in written[1]["statistics"]:
        tables = [table for table in set_tables(entry) if "comparisons" not in table.title]
        assert max(len(line) for table in tables for line in table.text().splitlines()) <= 130


def test_page_needs_nothing_else_and_nothing_breaks_out(page):
    assert not re.search(r"(?:src|href)=\"(?!data:)", page) and "url(" not in page and "@import" not in page
    assert "</script><b>" not in page and html.escape("</script><b>not bold</b>") in page
    assert page.count('class="light" src="data:image/svg+xml;base64,') == 3 == page.count('class="dark" src="data:')
    for fact in ("0123abc", "launch/compare.py --config=configs/demo.py", "0.10.2"):
        assert fact in page
    for tag in ("table", "div", "ul", "details", "figure", "section", "thead", "tbody", "tr"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag


def test_page_shows_every_conclusion_and_verdict(written, page):
    _, study = written
    assert set(study["conclusions"]) == {"Open set", "Closed set"}
    for sentences in study["conclusions"].values():
        assert all(str(html.escape(sentence)) in page for sentence in sentences)
    for entry in study["statistics"]:
        for comparison in entry["comparisons"]:
            assert html.escape(verdict(entry, comparison)) in page


def test_sets_stand_in_one_order_in_every_form(written, page):
    out, study = written
    order = ["Open set", "Closed set", "Val set"]
    assert list(study["conclusions"]) == order[:2]
    assert re.findall(r"^(\w+ set)\n=", (out / "table.txt").read_text(encoding="utf-8"), flags=re.M) == order
    assert re.findall(r"^## (\w+ set)", (out / "table.md").read_text(encoding="utf-8"), flags=re.M) == order
    assert re.findall(r"<h2>(\w+ set)", page) == order


@pytest.mark.slow
def test_contradictions_leave_an_older_report_alone(few, tmp_path):
    old = tmp_path / "report"
    write_study(old, few, {}, {}, resamples=20)
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    with pytest.raises(StudyError):
        write_study(old, [*few, few[0]], {}, {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_study(old, few, {}, {"loss": float("nan")}, resamples=20)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    with pytest.raises(StudyError, match="not a folder"):
        write_study(old / "study.json", few, {}, {})


@pytest.mark.slow
def test_a_newer_report_replaces_the_older_one_and_its_plots(few, tmp_path):
    write_study(tmp_path, few, make_selection(STRENGTHS), PROVENANCE, resamples=20)
    (tmp_path / "maps.png").touch()  # of someone else
    write_study(tmp_path, few, {}, PROVENANCE, resamples=20)
    names = {path.name for path in tmp_path.iterdir()}
    assert "plot_alpha_published.png" not in names and {"plot_auroc_published.png", "maps.png"} <= names
    assert "equal budget" not in (tmp_path / "table.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_same_outcomes_give_the_same_bytes(few, tmp_path):
    for name in ("first", "second"):
        write_study(tmp_path / name, few, {}, PROVENANCE, resamples=20)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_verdict_in_words():
    entry = an_entry()
    assert verdict(entry, entry["comparisons"][0]) == (
        "difference (reconstruction) is 0.012 ahead of cyborg on the open set (95 %: \u22120.004 to 0.028): "
        "not significant, it may be chance of the seeds and images (p = 0.13 over seeds, p = 0.21 over images)."
    )
    placebo = {
        "against": "placebo",
        "other": "difference_ring",
        "other_kind": "placebo",
        "p_seeds": 0.0001,
        "p_groups": None,
    }
    entry = an_entry(
        **placebo, p_holm=0.0002, significant=True, difference={"mean": -0.5, "bootstrap": None, "interval": None}
    )
    entry["protocol"] = "k_fold"
    assert verdict(entry, entry["comparisons"][0]) == (
        "difference (reconstruction) is significantly behind difference_ring (placebo), by 0.500 on the open set "
        "(k_fold): p < 0.001 after Holm (p < 0.001 over seeds)."
    )


@pytest.mark.parametrize(
    "options, reason, words",
    [
        ({"p_seeds": 0.34, "p_groups": 0.0001}, "seeds", "chance of the seeds (p = 0.34 over seeds, p < 0.001 over"),
        ({"p_seeds": 0.02, "p_groups": 0.21}, "images", "chance of the images ("),
        ({"p_seeds": 0.02, "p_groups": 0.01, "p_holm": 0.08}, "Holm", "among 1 comparisons, p = 0.080 after Holm"),
        ({"p_seeds": 0.25, "smallest_p_seeds": 0.25, "seeds": [0, 1, 2]}, "too few seeds", "3 seeds are too few"),
    ],
)
def test_no_difference_is_called_not_significant_without_the_reason(options, reason, words):
    entry = an_entry(**options)
    (comparison,) = entry["comparisons"]
    assert outcome_word(entry, comparison) == f"not significant ({reason})"
    assert "not significant" in verdict(entry, comparison) and words in verdict(entry, comparison)


CHANCE = st.floats(0.0, 1.0, width=32)


@given(
    st.lists(st.tuples(st.floats(-0.9, 0.9), st.floats(0.0, 0.5), CHANCE, CHANCE), min_size=1, max_size=4),
    st.sampled_from([1, 2, 5, 10]),
)
def test_sentences_agree_with_their_figures(drawn, seeds):
    """Of any figures: side, amount, interval, and whether it is significant; nothing is, with one seed."""
    entry = an_entry()
    comparisons = []
    for number, (mean, width, p_seeds, p_groups) in enumerate(drawn):
        p_seeds = p_seeds if mean else 1.0  # as the signs of no difference give
        p = p_groups if seeds == 1 else max(p_seeds, p_groups)
        holm = 1.0 if seeds == 1 else min(1.0, p * len(drawn))
        comparisons.append(
            entry["comparisons"][0]
            | {"arm": f"difference_{number}", "seeds": list(range(seeds)), "p_groups": p_groups, "p_holm": holm}
            | {"p_seeds": 1.0 if seeds == 1 else p_seeds, "significant": holm <= 0.05}
            | {"smallest_p_seeds": 2.0 ** (1 - seeds)}
            | {"difference": {"mean": mean, "bootstrap": [mean - width, mean + width / 2], "interval": None}}
        )
    entry |= {"comparisons": comparisons, "arms": [an_arm("cyborg", seeds)]}
    claim, *rest = summary(entry, "cyborg")
    for comparison in comparisons:
        sentence = verdict(entry, comparison)
        mean, (low, high) = comparison["difference"]["mean"], comparison["difference"]["bootstrap"]
        (clause,) = re.findall(rf"{comparison['arm']} is (.*?)(?:;|\.$)", claim)
        for words in (sentence, clause):
            assert ("ahead" in words, "behind" in words) == (mean > 0, mean < 0)
            assert abs(mean) < 0.0005 or f"{abs(mean):.3f}" in words
            assert ("significantly ahead" in words or "significantly behind" in words) == comparison["significant"]
            shown = [float(x.replace("\u2212", "-")) for x in re.search(r"95 %: (\S+) to ([^,):]+)", words).groups()]
            np.testing.assert_allclose(shown, sorted([low, high] if mean >= 0 else [-low, -high]), atol=0.00051)
        if seeds == 1:
            assert "one pair of runs" in sentence and "other seeds may differ" in sentence
            assert ("may be chance" in clause) == (mean != 0 and (low <= 0 <= high or comparison["p_groups"] > 0.05))
        else:
            assert ("not significant" in sentence) != comparison["significant"]
    won = [c["arm"] for c in comparisons if c["significant"] and c["difference"]["mean"] > 0]
    everything = " ".join([claim, *rest, *(verdict(entry, c) for c in comparisons)])
    if seeds == 1:
        assert claim.startswith("One seed cannot tell") and "significant" not in everything and "Holm" not in everything
    elif won:
        assert re.match(r"(.*?) beats? cyborg significantly", claim)[1] == " and ".join(
            [", ".join(won[:-1]), won[-1]] if len(won) > 1 else won
        )
    else:
        assert claim.startswith("No reconstruction beats cyborg significantly on the open set: ")


def test_other_arms_and_placebos_have_a_sentence_each():
    options = {"arm": "cross_entropy", "kind": "", "difference": {"mean": -0.1, "bootstrap": [-0.2, 0.0]}}
    (sentence,) = summary(an_entry(**options), "cyborg")
    assert (
        sentence
        == "cross_entropy is 0.100 behind cyborg, not significantly (95 %: 0.000 to 0.200, p = 0.39 after Holm)."
    )
    options = {"against": "placebo", "other": "difference_ring", "difference": {"mean": 0.0, "bootstrap": None}}
    options["difference"]["interval"] = None
    (sentence,) = summary(an_entry(**options), "cyborg")
    assert sentence == "difference is level with its placebo difference_ring (p = 0.39 after Holm)."


def test_limits_are_said():
    few = an_entry(seeds=[0, 1, 2], smallest_p_seeds=0.25, unpaired=[5])
    few["groups"] = 1
    few["arms"] = [an_arm("cyborg", 3) | {"incomplete": [7]}]
    few["missing"] = ["a - b could not be compared."]
    text = "\n".join(summary(few, "cyborg"))
    assert "3 seeds are too few: at best p = 0.25 over seeds, so that after Holm over 1 comparisons" in text
    assert "All images are one group" in text and "a - b could not be compared." in text
    assert "only the 3 common seeds are paired; without a partner: 5." in text and "seeds 7 lack a fold" in text
    assert len(summary(an_entry(), "cyborg")) == 1


@pytest.mark.slow
def test_one_seed_has_no_test_over_seeds_in_any_form(outcomes, tmp_path):
    lone = [o for o in outcomes if o.seed == 0]
    study = write_study(tmp_path, lone, {}, {}, placebos=PLACEBOS, resamples=50)
    forms = [(tmp_path / name).read_text(encoding="utf-8") for name in ("table.txt", "table.md", "index.html")]
    for text in [*forms, screen(study)]:
        assert not re.search(r"p seeds|p \(seeds\)|Holm|significan|deviation|seed 0", text)
        assert "no test over seeds" in text and "other seeds may differ" in text
        assert "p groups" in text and "p over" not in text


def test_the_screen_is_one_screen(written):
    """The table at a glance and what was found on its set, in few and short lines."""
    _, study = written
    lines = screen(study).splitlines()
    assert len(lines) < 30 and lines[1].startswith("arm ") and all(len(line) <= SCREEN_WIDTH for line in lines[9:])
    shown = " ".join(line.strip() for line in lines)
    assert all(sentence in shown for sentence in study["conclusions"]["Open set"])
    assert not any(sentence in shown for sentence in study["conclusions"]["Closed set"])


@pytest.mark.slow
def test_columns_and_panels_without_a_figure_are_left_out(outcomes, tmp_path):
    """The closed set has no human maps, the open one has: its columns and panels alone show agreement."""
    without = lambda o: o._replace(metrics=o.metrics | dict.fromkeys(("cc_true", "cc_false", "cc_difference")))
    mixed = [without(o) if o.set == "closed" else o for o in outcomes if o.set != "val"]
    study = write_study(tmp_path / "mixed", mixed, {}, {}, resamples=20)
    entries = {entry["set"]: entry for entry in study["statistics"]}
    assert "CC T" in set_tables(entries["open"])[1].header and "CC T" not in set_tables(entries["closed"])[1].header
    assert set_tables(entries["closed"])[-1].title == "closed: paired comparisons, a family of 4"  # no correlations
    for table in (table for entry in entries.values() for table in set_tables(entry)):
        assert all(any(row[i] != "-" for row in table.rows) for i in range(len(table.header)))
    drawn = {}
    for name in ("draw_auroc", "draw_agreement"):
        keep = lambda entries, *_, name=name: drawn.setdefault(name, [entry["set"] for entry in entries]) and Figure()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plots, name, keep)
            draw_study(list(entries.values()), {}, {}, "cyborg")
    assert drawn == {"draw_auroc": ["open", "closed"], "draw_agreement": ["open"]}
    alone = lambda o: o._replace(labels=np.ones_like(o.labels), metrics=o.metrics | {"auroc": None})
    blind = study_statistics([alone(o) if o.set == "closed" else o for o in mixed], resamples=20)
    assert [plot.name for plot in draw_study(blind, {}, {}, "cyborg")] == ["auroc_published", "agreement_published"]


@pytest.mark.slow
def test_the_page_shows_the_maps_where_there_are_some(few, tmp_path):
    maps = tmp_path / "maps.png"
    Image.new("RGB", (30, 20), "red").save(maps)
    write_study(tmp_path / "with", few, {}, {}, resamples=20, maps=maps)
    write_study(tmp_path / "without", few, {}, {}, resamples=20)
    pages = {name: (tmp_path / name / "index.html").read_text(encoding="utf-8") for name in ("with", "without")}
    assert base64.b64encode(maps.read_bytes()).decode() in pages["with"] and "<h2>Maps</h2>" in pages["with"]
    assert "<h2>Maps</h2>" not in pages["without"] and "image/png" not in pages["without"]


def test_numbers_in_words():
    assert [probability(p) for p in (0.0004, 0.0123, 0.0994, 0.0996, 0.5, 1.0)] == [
        "< 0.001",
        "0.012",
        "0.099",
        "0.10",
        "0.50",
        "1.00",
    ]


def as_arm(name, strategy=None, kind=""):
    return {"arm": name, "strategy": strategy or name, "kind": kind}


def test_arms_look_unlike_and_alike_across_studies():
    plain = ["energy", *STRENGTHS, "contrast", "outside", "entropy"]
    variants = {"kl": "difference", "difference_raw": "difference", "cyborg_ring": "cyborg", "energy_d": "energy"}
    arms = [as_arm(name, strategy) for name, strategy in variants.items()]
    arms += [as_arm(name, "cyborg" if name == "cyborg_mean_map" else None) for name in plain]
    looks = arm_looks(arms, {"cyborg": ["cyborg_mean_map", "cyborg_ring"]})
    assert list(looks) == [arm["arm"] for arm in arms]
    assert len({(look.color, look.marker, look.filled) for look in looks.values()}) == len(arms)
    assert not looks["cyborg_ring"].filled and looks["cyborg_ring"].color == looks["cyborg"].color
    assert looks["kl"].color == looks["difference"].color and looks["energy_d"].color == looks["energy"].color
    fewer = arm_looks([as_arm("kl", "difference"), as_arm("difference"), as_arm("cyborg")], {})
    assert all(fewer[arm] == looks[arm] for arm in ("difference", "cyborg"))


@pytest.fixture(scope="module")
def drawings(outcomes):
    """Each kind of plot, drawn at its size."""
    many = [o._replace(arm=f"{o.arm}_variant_{n}") if n else o for o in outcomes for n in range(3)]
    entries = [e for e in study_statistics(many, resamples=20) if e["set"] != "val"]
    arms = [arm["arm"] for arm in entries[0]["arms"]]
    looks = arm_looks(entries[0]["arms"], PLACEBOS)
    selection = make_selection(arms, sets=("open", "closed"))["published"]
    figures = {}
    for name, colors, draw in (
        ("auroc", "light", lambda: draw_auroc(entries, arms, looks, "cyborg")),
        ("alpha", "light", lambda: draw_alpha(selection, entries, looks)),
        ("agreement", "dark", lambda: draw_agreement(entries, looks)),
    ):
        with theme(colors):
            figures[name] = draw()
            figures[name].draw_without_rendering()
    return figures


@pytest.mark.parametrize("name", ["auroc", "alpha", "agreement"])
def test_no_two_texts_of_a_plot_overlap(drawings, name):
    figure = drawings[name]
    texts = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts)]
    for scale in (scale for axis in figure.axes for scale in (axis.xaxis, axis.yaxis)):
        low, high = sorted(scale.get_view_interval())  # ticks outside are kept, but not drawn
        texts += [tick.label1 for tick in scale.get_major_ticks() if low <= tick.get_loc() <= high]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_visible() and text.get_text()]
    width, height = figure.bbox.size
    for number, (label, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"{label!r} is cut off"
        for other, beside in boxes[number + 1 :]:
            overlap = min(box.x1, beside.x1) - max(box.x0, beside.x0), min(box.y1, beside.y1) - max(box.y0, beside.y0)
            assert min(overlap) < 1, f"{label!r} and {other!r} overlap"


def test_all_seeds_are_dots(drawings, outcomes):
    open_panel = drawings["auroc"].axes[0]
    drawn = np.sort(np.concatenate([dots.get_offsets()[:, 0] for dots in open_panel.collections]))
    values = np.sort([o.metrics["auroc"] for o in outcomes if o.set == "open"] * 3)
    np.testing.assert_allclose(drawn, values, atol=1e-12)


@pytest.mark.slow
def test_plots_without_anything_to_show_are_left_out(outcomes):
    blind = [o._replace(metrics=o.metrics | dict.fromkeys(("cc_true", "cc_difference"))) for o in outcomes]
    plots = draw_study(study_statistics(blind, resamples=20), {}, PLACEBOS, "cyborg")
    assert [plot.name for plot in plots] == ["auroc_published"]
    alone = [o._replace(labels=np.ones_like(o.labels), metrics=o.metrics | {"auroc": None}) for o in blind]
    assert not draw_study(study_statistics(alone), {}, {}, "cyborg")


@pytest.mark.slow
def test_validation_alone_is_drawn_and_compared_with_nothing(outcomes, tmp_path):
    study = write_study(tmp_path, [o for o in outcomes if o.set == "val"], {}, {}, resamples=20)
    assert (tmp_path / "plot_auroc_published.png").exists()
    assert "Nothing could be compared" in study["conclusions"]["No test"][0]


def test_no_dot_and_no_interval_leaves_the_panel(drawings):
    for panel in drawings["auroc"].axes:
        low, high = panel.get_xlim()
        ends = [float(x) for line in panel.lines for x in line.get_xdata()]
        ends += [float(x) for dots in panel.collections for x in dots.get_offsets()[:, 0]]
        assert low < min(ends) and max(ends) < high
