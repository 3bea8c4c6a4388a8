// Plans along a relaxation's choices: its optimum, and plans that keep the limits which it leaves out.
#pragma once

#include <vector>

#include "planner/cost_to_go.hpp"

namespace orbitsplit::planner {

struct Walk {
    bool is_complete = false;
    double loss = 0;
    std::vector<Stage> stages;
};

// Follows a relaxation's choices from the root: the relaxed optimum, in which nodes outside the ng-set may repeat.
Walk relaxed_optimum(const Tables& t, const Metric& metric, const Relaxation& relaxation);

// The same without repeating a node or exceeding the loss budget, as far as the least loss to go tells.
Walk diving_heuristic(const Tables& t, const Metric& metric, const Relaxation& relaxation,
                      const Relaxation& least);

// The diving heuristic along the least loss, whatever the time.
Walk diving_heuristic_for_loss(const Tables& t, const Relaxation& least);

}  // namespace orbitsplit::planner
