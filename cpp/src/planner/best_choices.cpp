#include "planner/best_choices.hpp"

#include <algorithm>
#include <limits>

namespace orbitsplit::planner {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

void fill_best_stages(const Tables& t, const Metric& m, const Relaxation& r, int start, bool has_starts_last,
                      BestChoices& best) {
    for (int lane = 0; lane < t.lanes(); ++lane) {
        const int node = lane / t.weight_levels;
        const std::size_t first = best.rows[node] * (t.layers + 1);
        const std::size_t at =
            first + (has_starts_last ? start : static_cast<std::size_t>(start) * best.longest(node));
        const std::size_t step = has_starts_last ? t.layers + 1 : 1;
        const double* losses = t.stage_losses(lane % t.weight_levels, start);
        for (int stop = start + 1; stop <= t.max_stop[t.lane_boundary(lane, start)]; ++stop) {
            double weight = stage_weight(t, m, r.limit, lane, node, start, stop);
            if (losses != nullptr) weight += r.multiplier * losses[stop];
            double& least = best.stages[at + (stop - start - 1) * step];
            least = std::min(least, weight);
        }
    }
}

}  // namespace

double best_level(const Tables& t, const Metric& m, const Relaxation& r, int boundary, int source, int link) {
    double best = infinity;
    for (int k = 0; k < t.levels; ++k) {
        const int index = t.boundary_level(boundary, k);
        if (!t.has_level(index)) continue;  // 0 times infinity is no number
        best = std::min(best,
                        transfer_weight(t, m, r.limit, source, link, index) + r.multiplier * t.loss[index]);
    }
    return best;
}

std::size_t operations_of_boundary(const Tables& t) {
    return t.neighbour.size() * t.levels +
           static_cast<std::size_t>(t.vertices()) * t.layers * t.weight_levels;
}

BestChoices best_choices(const Tables& t, const Metric& m, const Relaxation& r, bool has_starts_last,
                         const TimeLimit& time_limit) {
    BestChoices best;
    if (t.visited_sets == 1) return best;
    best.rows.push_back(0);
    for (int n = 0; n < t.nodes; ++n) {
        int longest = 0;
        for (int i = 0; i < t.layers; ++i) longest = std::max(longest, longest_stop(t, n, i) - i);
        best.rows.push_back(best.rows.back() + longest);
    }
    const std::size_t row = t.layers + 1;
    best.transfers.assign(t.neighbour.size() * row, infinity);
    best.stages.assign(best.rows.back() * row, infinity);
    for (int i = 0; i < t.layers && !time_limit.must_end_after(operations_of_boundary(t)); ++i) {
        for (int v = 0; i > 0 && v < t.vertices(); ++v) {
            for (int e = t.neighbour_start[v]; e < t.neighbour_start[v + 1]; ++e)
                best.transfers[e * row + i] = best_level(t, m, r, i, t.node_of[v], e);
        }
        fill_best_stages(t, m, r, i, has_starts_last, best);
    }
    return best;
}

}  // namespace orbitsplit::planner
