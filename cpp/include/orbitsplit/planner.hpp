// Finds the plan of smallest objective (cost.hpp) that respects memory, links, pins, loss budget and number of nodes.
//
// Exact: a label-setting A* over (layers placed, last node, visited nodes). Every label carries the sum and the
// maximum of the occupancies, for prefill and decode separately, and the loss, because the objective is not
// additive; with weight levels every stage also chooses the precision of its weights. Admissible bounds come from
// backward dynamic programmes over relaxations in which most nodes may repeat. In free order a problem that a first
// search does not solve gets its incumbent from a local search over orders. "Optimal" is up to a relative 1e-12 of
// floating-point rounding. The same problem gives the same plan on every machine.
//
// Free order of more than 64 nodes, such as a constellation, is bounded by k-cycle elimination instead of visited
// sets (cpp/src/planner/k_cycle.hpp): best with few links for each node and with max_nodes.
#pragma once

#include <cstddef>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "orbitsplit/cost.hpp"
#include "orbitsplit/export.hpp"

namespace orbitsplit {

struct SolveOptions {
    Objective objective = Objective::latency;
    std::optional<int> max_nodes = std::nullopt;  // none: no limit
    double gap = 0;  // a plan proven to be within this relative distance of the optimum is good enough
    double time_limit_s = std::numeric_limits<double>::infinity();
    // Called by the solving thread, up to some thousand times a second. After it returned true, and only true is
    // returned from then on, solve() returns within milliseconds, as at the time limit: the best plan so far and its
    // gap. For a std::stop_token: [token] { return token.stop_requested(); }. An exception leaves solve().
    std::function<bool()> stop_requested = {};
    std::size_t max_labels = 5'000'000;
    // For labels, and for bounds at most half of it. The first bounds come on top.
    std::size_t max_bytes = 2'000'000'000;
    std::vector<Stage> incumbent = {};  // a plan to start from; ignored if it violates a limit
    // For the bounds of free order, 1 to 256: they change the time that a search takes, not its result.
    int threads = 1;
};

enum class Status {
    optimal,
    feasible,  // a limit of the options was reached or a stop requested, or the gap they allow; gap bounds the error
    infeasible,  // proven: no plan exists; Solution::reason says why
    unknown,     // a limit of the options was reached or a stop requested before any plan was found
};

ORBITSPLIT_API const char* status_name(Status status);
ORBITSPLIT_API const char* objective_name(Objective objective);

struct Solution {
    Status status = Status::unknown;
    double objective_s = std::numeric_limits<double>::infinity();  // value_s() of what evaluate() returns
    double lower_bound_s = 0;
    double gap = std::numeric_limits<double>::infinity();  // (objective - lower bound) / objective
    double seconds = 0;
    double loss = 0;
    std::vector<Stage> stages;
    std::string reason;      // empty when optimal
    std::size_t labels = 0;  // labels made by the search
};

// Throws std::invalid_argument for an invalid problem or option.
ORBITSPLIT_API Solution solve(const Problem& problem, const SolveOptions& options = {});

// The same for a problem that was validated before. Throws std::invalid_argument for an invalid option.
ORBITSPLIT_API Solution solve(const PreparedProblem& problem, const SolveOptions& options = {});

}  // namespace orbitsplit
