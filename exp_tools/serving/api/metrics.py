"""What Prometheus reads of the API: requests by endpoint and status, times, request slots, memory, and the model."""

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.responses import Response

from exp_tools.serving.api.serving import Serving

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one server. Pages are those of the API or "(other)"; nothing of a client is among the labels."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "lesion_api_requests", "Answered requests", ["method", "page", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "lesion_api_request_seconds",
            "Time from the head of a request to its answer",
            ["page"],
            buckets=SECONDS,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def observe(self, method: str, page: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self.requests.labels(method, page, str(status)).inc()
        self.seconds.labels(page).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """What is read when it is asked for (prometheus_client calls it)."""
        gate, served = self.serving.gate, self.serving.current.served
        yield GaugeMetricFamily("lesion_api_inside", "Requests in work or waiting", gate.inside)
        yield GaugeMetricFamily("lesion_api_places", "Requests that may be in work or waiting", gate.places)
        model = GaugeMetricFamily("lesion_api_model_info", "The model in use", labels=["architecture", "sha256"])
        model.add_metric([served["architecture"], served["sha256"]], 1)
        yield model
        reloads = CounterMetricFamily("lesion_api_reloads", "Reloads of the model", labels=["result"])
        for result, count in self.serving.reloads.items():
            reloads.add_metric([result], count)
        yield reloads

    def response(self) -> Response:
        return Response(generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
