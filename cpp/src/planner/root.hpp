// The root of the search: intervals and Lagrange multipliers whose relaxations give good bounds, and an incumbent from
// the diving heuristic.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "planner/relaxed_walk.hpp"
#include "support/time_limit.hpp"

namespace orbitsplit::planner {

// Bounds within this relative distance count as equal: sums in another order differ by rounding.
inline constexpr double rounding = 1e-12;

// Products of multipliers up to this one with losses and budgets are finite.
inline constexpr double most_multiplier = 1e100;

struct Incumbent {
    double objective_s = std::numeric_limits<double>::infinity();
    std::vector<Stage> stages;
    double gap = 0;  // of SolveOptions

    // Only a bound below this leaves room for a plan that is better by more than the gap.
    double cutoff() const { return objective_s * (1 - std::max(gap, rounding)); }

    bool is_beaten_by(double other_s) const { return other_s < objective_s * (1 - rounding); }
};

// Plans whose relaxed maximum is in (low, high], bounded by relaxations of limit high.
struct Interval {
    double low = 0;
    double high = std::numeric_limits<double>::infinity();
    double bound = 0;       // of the whole problem, low included
    double multiplier = 0;  // that gave the bound
    std::vector<std::shared_ptr<Relaxation>> relaxations;
};

struct Root {
    std::vector<std::vector<Interval>> intervals;  // a list for each metric, ascending, without fathomed ones
    Incumbent incumbent;
    double lower_bound_s = 0;
};

// Makes a walk the incumbent if it is a plan that improves on it.
void offer(const Problem& problem, Objective objective, const Walk& walk, Incumbent& incumbent);

// A bound on every better plan: of each metric the lowest of its intervals, the highest over the metrics.
double lower_bound_s(const std::vector<std::vector<Interval>>& intervals);

// Memory of one relaxation.
inline std::size_t relaxation_bytes(const Tables& t) {
    return 2 * sizeof(double) * state(t, t.visited_sets, 0, 0);
}

// Only plans better than the incumbent count; it may be an objective without stages. Divides no interval if the
// relaxations could take more than max_bytes.
Root explore_root(const Problem& problem, const Tables& t, Objective objective, const Relaxation& least,
                  const TimeLimit& time_limit, Incumbent incumbent, std::size_t max_bytes);

}  // namespace orbitsplit::planner
