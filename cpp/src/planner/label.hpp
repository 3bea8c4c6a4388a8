// A label: one way to place the layers before a boundary.
#pragma once

#include <cstdint>

#include "planner/tables.hpp"

namespace orbitsplit::planner {

// Sums and maxima of the occupancies so far. The last stage is not in the maximum before it is left: what it
// has collected is open, and encoding or a half-duplex transmission may come on top.
struct Load {
    double sum = 0;
    double max = 0;
    double open = 0;
};

struct Label {
    Load prefill;
    Load token;
    double loss = 0;
    double back_s = 0;  // latencies of the links back along the chain
    double bound = 0;
    std::uint64_t used = 0;  // free order: the mark of the nodes with a stage
    std::int32_t parent = -1;
    std::int32_t next = -1;  // in the list of its state
    std::int32_t boundary = 0;
    std::int32_t place = 0;
    std::int32_t first = 0;
    std::int32_t level = no_level;  // of the cut before this stage, set on arrival
    std::uint32_t past = 0;         // as in bounds.hpp
    bool is_arrived = false;        // on the node, nothing computed yet; else its stage ends at the boundary
    bool is_dead = false;           // a better label of the same state came later
};

// The most that leaving can add to what is open; infinite while the stage still grows.
struct Growth {
    double prefill;
    double token;
};

// An open occupancy decides nothing as long as what leaving can add keeps it below the other's maximum.
inline bool is_no_worse(const Load& a, const Load& b, double growth) {
    return a.sum <= b.sum && a.max <= b.max && (a.open <= b.open || a.open + growth <= b.max);
}

// Whatever completes b completes a at no higher objective, memory or loss. Both are of the same state: in free
// order they have the same past, in fixed order a past counts stages.
inline bool dominates(const Label& a, const Label& b, const Growth& growth) {
    return a.loss <= b.loss && is_no_worse(a.prefill, b.prefill, growth.prefill) &&
           is_no_worse(a.token, b.token, growth.token) && a.back_s <= b.back_s && a.past <= b.past;
}

}  // namespace orbitsplit::planner
