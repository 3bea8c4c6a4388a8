// Finds the plan of smallest objective (cost.hpp) that fits memory, links, pins, loss budget and number of nodes.
//
// Exact: a label-setting A* over (layers placed, last node, nodes used). Every label carries the sum and the
// maximum of the occupancies, for prefill and decode apart, and the loss, because the objective is not
// additive; admissible bounds come from backward dynamic programmes in which nodes may repeat unless tracked.
// Free order that does not yield at once gets its incumbent from a local search over orders.
// "Optimal" is up to a relative 1e-12 of floating-point rounding. The same problem gives the same plan
// everywhere.
//
// Free order of more than 64 nodes, such as a constellation, is searched over places that remember the last nodes of a
// chain (planner/places.hpp): best with few links for each node and max_nodes.
#pragma once

#include <cstddef>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "orbitsplit/cost.hpp"

namespace orbitsplit {

struct SolveOptions {
    Objective objective = Objective::latency;
    std::optional<int> max_nodes = std::nullopt;  // none: as many as there are
    double gap = 0;                               // a plan proven to be this near to the best is good enough
    double time_limit_s = std::numeric_limits<double>::infinity();
    std::size_t max_labels = 5'000'000;
    std::size_t max_bytes =
        2'000'000'000;  // for bounds, half of it at most, and labels; the first bounds come on top
    std::vector<Stage> incumbent = {};  // a plan to start from, ignored where it breaks a limit
    int max_tracked = 16;  // free order: nodes that bounds keep from repeating; each may double their work
    int max_bits = 64;  // free order of more nodes remembers the last nodes of chains, not sets; at most 64
};

enum class Status {
    optimal,
    feasible,    // a limit of the options was reached, or the gap they allow: gap bounds the plan's error
    infeasible,  // proven: no plan exists; reason says why
    unknown,     // a limit of the options was reached before any plan was found
};

const char* status_name(Status status);
const char* objective_name(Objective objective);

struct Solution {
    Status status = Status::unknown;
    double objective_s = std::numeric_limits<double>::infinity();  // value_s() of what evaluate() gives
    double lower_bound_s = 0;
    double gap = std::numeric_limits<double>::infinity();  // (objective - lower bound) / objective
    double seconds = 0;
    double loss = 0;
    std::vector<Stage> stages;
    std::string reason;      // empty when optimal
    std::size_t labels = 0;  // labels made by the search
};

// Throws std::invalid_argument for an invalid problem or option.
Solution solve(const Problem& problem, const SolveOptions& options = {});

}  // namespace orbitsplit
