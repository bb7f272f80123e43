"""Metrics in Prometheus' format: buckets are cumulative and inclusive, labels escaped."""

from __future__ import annotations

from mmssl.serving.metrics import Histogram, Metrics


def test_buckets_are_cumulative_and_include_their_bound() -> None:
    histogram = Histogram("h", "what", "of", (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe("a", value)
    assert list(histogram.lines()) == [
        "# HELP h what",
        "# TYPE h histogram",
        'h_bucket{of="a",le="1.0"} 2',
        'h_bucket{of="a",le="2.0"} 3',
        'h_bucket{of="a",le="+Inf"} 4',
        'h_sum{of="a"} 12.0',
        'h_count{of="a"} 4',
    ]


def test_answers_and_gauges() -> None:
    metrics = Metrics()
    metrics.answered('/a"b', 200, 0.1)
    metrics.answered('/a"b', 200, 0.2)
    metrics.answered("/c", 422, 0.2)
    lines = metrics.text(3, 4).splitlines()
    assert 'mmssl_requests_total{route="/a\\"b",status="200"} 2' in lines
    assert 'mmssl_requests_total{route="/c",status="422"} 1' in lines
    assert "mmssl_requests_running 3" in lines
    assert "mmssl_inputs_waiting 4" in lines
