#include <pybind11/stl.h>

#include "bindings.hpp"
#include "interrupts.hpp"
#include "planner/options.hpp"
#include "problem_from.hpp"

namespace py = pybind11;

namespace {

orbitsplit::Objective objective_from(const std::string& name) {
    using orbitsplit::Objective;
    for (const Objective objective : {Objective::latency, Objective::throughput,
                                      Objective::time_to_first_token, Objective::time_per_token}) {
        if (name == orbitsplit::objective_name(objective)) return objective;
    }
    throw std::invalid_argument("objective is \"" + name +
                                "\"; valid are latency, throughput, "
                                "time_to_first_token and time_per_token");
}

py::dict solve(const py::object& problem, const std::string& objective, std::optional<int> max_nodes,
               double gap, double time_limit_s, std::size_t max_labels, std::size_t max_bytes, int threads,
               const StageArray& incumbent, int max_ng_size, int max_bitset_nodes) {
    const orbitsplit::PreparedProblem core = prepared_from(problem);
    Interrupts interrupts;
    const orbitsplit::planner::Options options{{.objective = objective_from(objective),
                                                .max_nodes = max_nodes,
                                                .gap = gap,
                                                .time_limit_s = time_limit_s,
                                                .stop_requested = interrupts.stop_requested(),
                                                .max_labels = max_labels,
                                                .max_bytes = max_bytes,
                                                .incumbent = stages_from(incumbent),
                                                .threads = threads},
                                               max_ng_size,
                                               max_bitset_nodes};
    orbitsplit::Solution solution;
    {
        py::gil_scoped_release release;
        solution = orbitsplit::planner::solve(core.problem(), options);
    }
    interrupts.rethrow();
    py::list stages;
    for (const orbitsplit::Stage& stage : solution.stages) {
        stages.append(py::make_tuple(stage.node, stage.start, stage.stop, stage.level, stage.weight_level));
    }
    using namespace py::literals;
    return py::dict("status"_a = orbitsplit::status_name(solution.status),
                    "objective_s"_a = solution.objective_s, "lower_bound_s"_a = solution.lower_bound_s,
                    "gap"_a = solution.gap, "seconds"_a = solution.seconds, "loss"_a = solution.loss,
                    "stages"_a = stages, "reason"_a = solution.reason, "labels"_a = solution.labels);
}

}  // namespace

void bind_planner(py::module_& m) {
    m.def("solve", solve, py::arg("problem"), py::arg("objective"), py::arg("max_nodes"), py::arg("gap"),
          py::arg("time_limit_s"), py::arg("max_labels"), py::arg("max_bytes"), py::arg("threads"),
          py::arg("incumbent"), py::arg("max_ng_size"), py::arg("max_bitset_nodes"));
}
