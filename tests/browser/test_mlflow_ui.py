"""MLflow's UI on mirrored cells, as `suite ui` serves it: the table, the charts, and several runs side by side."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from report.factory import Records, make_records, make_spec

from suite import tracking
from suite.records import write_samples
from suite.spec import BenchmarkRef
from suite.tracking.ui import charts_url, experiments, table_url

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def records() -> Records:
    """Five variants on two benchmarks."""
    benchmarks = (BenchmarkRef(name="tiny-medium"), BenchmarkRef(name="tiny-hard"))
    return make_records(make_spec("compared", benchmarks=benchmarks), num_samples=20)


@pytest.fixture(scope="module")
def experiment(chromium: Any, records: Records, mlflow_server: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its id, once all cells are mirrored. Asks for the browser first: without one, no server is started."""
    root = tmp_path_factory.mktemp("compared")

    def samples(fingerprint: str) -> Path:
        write_samples(root / f"{fingerprint}.parquet", records.samples[fingerprint])
        return root / f"{fingerprint}.parquet"

    done = tracking.sync(root, records.cells, samples, "# Can they be compared?\n", "compared", mlflow_server.url)
    assert done == tracking.SyncResult(10, 0)
    return next(found.id for found in experiments(mlflow_server.url) if found.name == "compared" and found.has_views)


def test_the_table_has_accuracy_and_verdict(visit: Callable[..., Any], mlflow_server: Any, experiment: str) -> None:
    """It opens in the view for runs, with our columns: no click is needed. Nothing is asked of another machine."""
    seen = visit(table_url(mlflow_server.url, experiment), mlflow_server.url, width=1900, height=1100)
    page = seen.page
    page.get_by_text("10 matching runs").wait_for()
    page.get_by_text("Can they be compared?").wait_for()
    for column in ("accuracy", "delta_vs_bf16", "verdict"):
        page.get_by_role("columnheader").filter(has_text=column).first.wait_for()
    page.get_by_text("tiny-hard").first.wait_for()
    assert seen.elsewhere == []


def test_charts_group_by_variant(
    visit: Callable[..., Any], mlflow_server: Any, experiment: str, records: Records
) -> None:
    """A bar a variant, its mean over the benchmarks."""
    seen = visit(charts_url(mlflow_server.url, experiment), mlflow_server.url, width=1900, height=1100)
    page = seen.page
    page.get_by_text("Model metrics").first.wait_for()
    page.get_by_text("Group by: variant").first.wait_for()
    page.locator(".js-plotly-plot .bars").first.wait_for()
    bars = page.locator(".js-plotly-plot").first.locator(".bars .point")
    assert bars.count() == len(records.spec.methods) + 1


def test_runs_side_by_side(visit: Callable[..., Any], mlflow_server: Any, experiment: str, records: Records) -> None:
    """MLflow's comparison of three runs has each accuracy, and names what differs."""
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=mlflow_server.url).search_runs([experiment], "tags.benchmark = 'tiny-hard'")
    runs = [run.info.run_id for run in found][:3]
    asked = f"runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([experiment]))}"
    seen = visit(f"{mlflow_server.url}/#/compare-runs?{asked}", mlflow_server.url, width=1900, height=1400)
    page = seen.page
    page.get_by_text("Comparing 3 Runs from 1 Experiment").first.wait_for()
    page.get_by_text("output_tokens_mean").first.wait_for()
    said = page.inner_text("body")
    for run in found[:3]:
        assert f"\n{run.data.metrics['output_tokens_mean']:.1f}".removesuffix(".0") in said
        assert f"\n{run.data.metrics['accuracy']:g}\n" in said
        assert run.data.tags["precision"] in said
