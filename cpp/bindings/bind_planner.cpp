#include <pybind11/stl.h>

#include "bindings.hpp"
#include "orbitsplit/planner.hpp"
#include "problem_from.hpp"

namespace py = pybind11;

namespace {

py::dict solve(const py::object& problem, double time_limit_s, std::size_t max_labels, int max_tracked) {
    const orbitsplit::Problem core = problem_from(problem);
    orbitsplit::Solution solution;
    {
        py::gil_scoped_release release;
        solution = orbitsplit::solve(core, {time_limit_s, max_labels, max_tracked});
    }
    py::list stages;
    for (const orbitsplit::Stage& stage : solution.stages) {
        stages.append(py::make_tuple(stage.node, stage.start, stage.stop, stage.level));
    }
    using namespace py::literals;
    return py::dict("status"_a = orbitsplit::status_name(solution.status),
                    "objective_s"_a = solution.objective_s, "lower_bound_s"_a = solution.lower_bound_s,
                    "gap"_a = solution.gap, "seconds"_a = solution.seconds, "loss"_a = solution.loss,
                    "stages"_a = stages, "reason"_a = solution.reason, "labels"_a = solution.labels);
}

}  // namespace

void bind_planner(py::module_& m) {
    m.def("solve", solve, py::arg("problem"), py::arg("time_limit_s"), py::arg("max_labels"),
          py::arg("max_tracked"));
}
