// The best level of each transfer and the best weight level of each stage under a relaxation's limit and multiplier.
#pragma once

#include <cstddef>
#include <vector>

#include "planner/cost_to_go.hpp"

namespace orbitsplit::planner {

// What does not depend on the visited set. With many visited sets the best level of every link at every boundary, and
// the best weight level of every stage, are found once; with a single one they are not, because most are never used.
struct BestChoices {
    std::vector<double> transfers;  // links x boundaries, or empty
    std::vector<double> stages;     // nodes x starts x lengths, or nodes x lengths x starts, or empty
    std::vector<std::size_t> rows;  // nodes: layers of the longest stages before them, and of all

    // By boundary.
    const double* transfers_of(const Tables& t, int link) const {
        return transfers.data() + static_cast<std::size_t>(link) * (t.layers + 1);
    }
    int longest(int node) const { return static_cast<int>(rows[node + 1] - rows[node]); }
    // By length, less one, where lengths come last.
    const double* stages_from(const Tables& t, int node, int start) const {
        return stages.data() + rows[node] * (t.layers + 1) + static_cast<std::size_t>(start) * longest(node);
    }
    // By start, where starts come last.
    const double* stages_of(const Tables& t, int node, int length) const {
        return stages.data() + (rows[node] + length - 1) * (t.layers + 1);
    }
};

// Of a transfer from a boundary over a link, infinite where none is possible.
double best_level(const Tables& t, const Metric& m, const Relaxation& r, int boundary, int source, int link);

// Operations of a relaxation at one boundary: an upper estimate for the time limit.
std::size_t operations_of_boundary(const Tables& t);

// If it must end early, so must what asked for it. Starts come last where all boundaries are filled at once.
BestChoices best_choices(const Tables& t, const Metric& m, const Relaxation& r, bool has_starts_last,
                         const TimeLimit& time_limit);

}  // namespace orbitsplit::planner
