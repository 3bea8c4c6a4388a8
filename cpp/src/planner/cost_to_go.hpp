// Lower bounds on what a partial plan still costs, and the plans that attain them.
//
// A relaxation is a backward dynamic programme over (past, boundary, place) in which nodes may repeat that are neither
// tracked nor remembered by the place. A past is the set of tracked nodes used and, where their number is limited,
// how many stages there are. For a metric, a limit on every single resource's weight in the maximum and a price on
// loss it gives
//
//     h(state) = min over completions whose resources all respect the limit of (sum + price * loss)
//
// Let a plan's relaxed maximum be the largest weight the relaxation's own tests see in it (the opening and
// closing of a stage enter by their least value), so that relaxed maximum <= true maximum. Cut the range of
// relaxed maxima into intervals (low_g, high_g]. A plan in interval g that extends a label with sum s,
// maximum v and loss l has a completion of relaxed maximum <= high_g, loss <= budget - l and true maximum >=
// max(v, low_g), hence for price >= 0
//
//     objective >= s + [h_{g,price}(state) - price * (budget - l)] + max(v, low_g)
//
// The smallest of these over the intervals bounds every extension. An interval whose bound at the root
// reaches the incumbent holds no better plan and is left out.
#pragma once

#include <vector>

#include "planner/tables.hpp"

namespace orbitsplit::planner {

struct Relaxation {
    double limit = 0;
    double price = 0;
    double root = 0;             // h of the whole problem
    std::vector<double> depart;  // h after the stage that ends at a boundary on a place, by state()
    std::vector<double> arrive;  // h before the stage that starts there
};

inline std::size_t state(const Tables& t, unsigned past, int boundary, int place) {
    return (static_cast<std::size_t>(past) * t.places() + place) * (t.layers + 1) + boundary;
}

// The past after one more stage.
inline unsigned with_node(const Tables& t, unsigned past, int node) {
    const unsigned used = t.tracked_bit[node] < 0 ? 0 : 1u << t.tracked_bit[node];
    return (past | used) + t.count_step;
}

inline bool has_used(const Tables& t, unsigned past, int node) {
    return t.tracked_bit[node] >= 0 && (past >> t.tracked_bit[node] & 1u) != 0;
}

// Whether a past rules a stage on the node out.
inline bool is_blocked(const Tables& t, unsigned past, int node) {
    return has_used(t, past, node) || past >> t.tracked >= t.most_stages;
}

Relaxation relax(const Tables& t, const Metric& metric, double limit, double price);

// Of a relaxation, by place: the least (sum + price * loss) of any relaxed plan that goes through it.
std::vector<double> through(const Tables& t, const Metric& metric, const Relaxation& relaxation);

// The relaxation that counts loss alone: the least loss any completion reaches.
Relaxation least_loss(const Tables& t);

struct Walk {
    bool is_complete = false;
    double loss = 0;
    std::vector<Stage> stages;
};

// Follows a relaxation's choices from the root: the relaxed optimum, in which untracked nodes may repeat.
Walk follow(const Tables& t, const Metric& metric, const Relaxation& relaxation);

// The same without repeating a node or leaving the loss budget, judged by the least loss to come.
Walk dive(const Tables& t, const Metric& metric, const Relaxation& relaxation, const Relaxation& least);

// A dive along the least loss, whatever it costs.
Walk dive_for_loss(const Tables& t, const Relaxation& least);

}  // namespace orbitsplit::planner
