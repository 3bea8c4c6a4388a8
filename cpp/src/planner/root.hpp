// The root of the search: intervals and prices whose relaxations bound well, and an incumbent from their walks.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "planner/cost_to_go.hpp"
#include "support/clock.hpp"

namespace orbitsplit::planner {

// Bounds within this relative distance count as equal: sums in another order differ by rounding.
inline constexpr double rounding = 1e-12;

struct Incumbent {
    double objective_s = std::numeric_limits<double>::infinity();
    std::vector<Stage> stages;
    double gap = 0;  // of SolveOptions

    // What a bound must stay below to promise a plan that is better by more than the gap.
    double cutoff() const { return objective_s * (1 - std::max(gap, rounding)); }

    bool is_beaten_by(double other_s) const { return other_s < objective_s * (1 - rounding); }
};

// Plans whose relaxed maximum lies in (low, high], bounded by relaxations of limit high.
struct Interval {
    double low = 0;
    double high = std::numeric_limits<double>::infinity();
    double bound = 0;  // of the whole problem, low included
    double price = 0;  // the price that gave it
    std::vector<std::shared_ptr<const Relaxation>> relaxations;
};

struct Root {
    std::vector<std::vector<Interval>> intervals;  // one list for each metric, ascending, those that matter
    Incumbent incumbent;
    double lower_bound_s = 0;
};

// Takes a walk as incumbent if it is a plan that beats it.
void offer(const Problem& problem, Objective objective, const Walk& walk, Incumbent& incumbent);

// What no better plan is below: every metric bounds it by the lowest of its intervals.
double lower_bound_s(const std::vector<std::vector<Interval>>& intervals);

// What one relaxation takes.
inline std::size_t relaxation_bytes(const Tables& t) { return 2 * sizeof(double) * state(t, t.pasts, 0, 0); }

// Starts from an incumbent: only better plans count, and of stages it may have none. Cuts no interval where their
// relaxations could take more than max_bytes.
Root explore_root(const Problem& problem, const Tables& t, Objective objective, const Relaxation& least,
                  const Clock& clock, Incumbent incumbent, std::size_t max_bytes);

}  // namespace orbitsplit::planner
