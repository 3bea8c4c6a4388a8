#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "bindings.hpp"
#include "orbitsplit/cost.hpp"
#include "problem_from.hpp"

namespace py = pybind11;

namespace {

std::vector<double> values(const py::object& array) {
    if (array.is_none()) return {};
    const auto typed = py::cast<py::array_t<double, py::array::c_style>>(array);
    return {typed.data(), typed.data() + typed.size()};
}

std::optional<orbitsplit::ExternalLink> external(const py::object& link) {
    if (link.is_none()) return std::nullopt;
    return orbitsplit::ExternalLink{link.attr("bytes").cast<double>(),
                                    values(link.attr("bandwidth_bytes_per_s")),
                                    values(link.attr("latency_s"))};
}

orbitsplit::Pins pins_from(const py::object& pins) {
    orbitsplit::Pins result;
    // A copy, because without the interpreter's lock another thread may change the one that is read.
    const py::dict layers = pins.attr("layers").attr("copy")();
    for (const auto& [layer, node] : layers) {
        result.layers.push_back({layer.cast<int>(), node.cast<int>()});
    }
    result.required = pins.attr("required").cast<std::vector<int>>();
    result.forbidden = pins.attr("forbidden").cast<std::vector<int>>();
    return result;
}

py::dict evaluate(const py::object& problem, const StageArray& stages) {
    const orbitsplit::PreparedProblem core = prepared_from(problem);
    const std::vector<orbitsplit::Stage> plan = stages_from(stages);
    orbitsplit::Evaluation score;
    {
        py::gil_scoped_release release;
        score = orbitsplit::evaluate(core, plan);
    }
    using namespace py::literals;
    return py::dict("objective_s"_a = score.objective_s, "prefill_s"_a = score.prefill_s,
                    "token_step_s"_a = score.token_step_s, "round_trip_s"_a = score.round_trip_s,
                    "tokens_per_step"_a = score.tokens_per_step, "bottleneck_s"_a = score.bottleneck_s,
                    "return_s"_a = score.return_s, "loss"_a = score.loss, "weight_loss"_a = score.weight_loss,
                    "latency_s"_a = score.latency_s, "ingress_s"_a = score.ingress_s,
                    "egress_s"_a = score.egress_s, "stage_s"_a = py::tuple(py::cast(score.stage_s)),
                    "earlier_stage_s"_a = py::tuple(py::cast(score.earlier_stage_s)),
                    "link_s"_a = py::tuple(py::cast(score.link_s)),
                    "decode_stage_s"_a = py::tuple(py::cast(score.decode_stage_s)),
                    "decode_link_s"_a = py::tuple(py::cast(score.decode_link_s)),
                    "stage_memory_bytes"_a = py::tuple(py::cast(score.stage_memory_bytes)),
                    "is_feasible"_a = score.is_feasible,
                    "violations"_a = py::tuple(py::cast(score.violations)));
}

}  // namespace

orbitsplit::Problem problem_from(const py::object& problem) {
    orbitsplit::Problem result;
    result.layers = problem.attr("layers").cast<std::vector<std::string>>();
    for (const py::handle node : problem.attr("nodes")) {
        result.nodes.push_back(
            {node.attr("name").cast<std::string>(), node.attr("memory_bytes").cast<double>(),
             node.attr("headroom_bytes").cast<double>(), node.attr("half_duplex").cast<bool>()});
    }
    for (const py::handle level : problem.attr("levels")) {
        result.levels.push_back({level.attr("name").cast<std::string>(), level.attr("ratio").cast<double>(),
                                 level.attr("encode_s_per_byte").cast<double>(),
                                 level.attr("decode_s_per_byte").cast<double>()});
    }
    for (const py::handle level : problem.attr("weight_levels")) {
        result.weight_levels.push_back({level.attr("name").cast<std::string>()});
    }
    result.weight_loss = values(problem.attr("weight_loss"));
    result.layer_memory_bytes = values(problem.attr("layer_memory_bytes"));
    result.layer_time_s = values(problem.attr("layer_time_s"));
    result.layer_earlier_time_s = values(problem.attr("layer_earlier_time_s"));
    result.layer_decode_time_s = values(problem.attr("layer_decode_time_s"));
    result.stage_overhead_s = values(problem.attr("stage_overhead_s"));
    result.stage_decode_overhead_s = values(problem.attr("stage_decode_overhead_s"));
    result.cut_bytes = values(problem.attr("cut_bytes"));
    result.cut_decode_bytes = values(problem.attr("cut_decode_bytes"));
    result.bandwidth_bytes_per_s = values(problem.attr("bandwidth_bytes_per_s"));
    result.latency_s = values(problem.attr("latency_s"));
    result.loss = values(problem.attr("loss"));
    result.loss_budget = problem.attr("loss_budget").cast<std::optional<double>>();
    result.micro_batches = problem.attr("micro_batches").cast<long long>();
    result.new_tokens = problem.attr("new_tokens").cast<long long>();
    result.groups = problem.attr("groups").cast<std::optional<long long>>();
    result.tokens_per_step = problem.attr("tokens_per_step").cast<double>();
    result.ingress = external(problem.attr("ingress"));
    result.egress = external(problem.attr("egress"));
    result.order = problem.attr("order").cast<std::string>() == "free" ? orbitsplit::Order::free
                                                                       : orbitsplit::Order::fixed;
    result.latency_occupies_link = problem.attr("latency_occupies_link").cast<bool>();
    result.pins = pins_from(problem.attr("pins"));
    return result;
}

orbitsplit::PreparedProblem prepared_from(const py::object& problem) {
    if (py::isinstance<orbitsplit::PreparedProblem>(problem))
        return problem.cast<orbitsplit::PreparedProblem>();
    return orbitsplit::PreparedProblem(problem_from(problem));
}

std::vector<orbitsplit::Stage> stages_from(const StageArray& stages) {
    const auto rows = stages.unchecked<2>();
    if (rows.shape(1) != 5) {
        throw std::invalid_argument("a row of stages has " + std::to_string(rows.shape(1)) +
                                    " numbers, must have 5");
    }
    std::vector<orbitsplit::Stage> result;
    for (py::ssize_t k = 0; k < rows.shape(0); ++k) {
        result.push_back({static_cast<int>(rows(k, 0)), static_cast<int>(rows(k, 1)),
                          static_cast<int>(rows(k, 2)), static_cast<int>(rows(k, 3)),
                          static_cast<int>(rows(k, 4))});
    }
    return result;
}

void bind_problem(py::module_& m) {
    // An ordinary class, as in the stub.
    const py::metaclass plain(reinterpret_cast<PyObject*>(&PyType_Type));
    py::class_<orbitsplit::PreparedProblem>(m, "PreparedProblem", plain);
    m.def(
        "prepare_problem",
        [](const py::object& problem) { return orbitsplit::PreparedProblem(problem_from(problem)); },
        py::arg("problem"));
    m.def("evaluate", evaluate, py::arg("problem"), py::arg("stages").noconvert());
}
