// A label: one way to place the layers before a boundary.
#pragma once

#include <cstdint>

#include "planner/tables.hpp"

namespace orbitsplit::planner {

// Sums and maxima of the occupancies so far; in prefill the sum is of the last micro-batch, the others of those before
// it. The last stage enters the maximum only when it is complete: until then what it has collected is `open`, and
// encoding or a half-duplex transmission may still be added.
struct Load {
    double sum = 0;
    double max = 0;
    double open = 0;
};

struct Label {
    Load prefill;
    Load token;
    double loss = 0;
    double return_s = 0;  // latencies of the links back along the chain, at most Tables::most_return_s
    double bound = 0;
    std::uint64_t set_key = 0;  // free order: sum of the keys of the nodes with a stage
    std::int32_t parent = -1;
    std::int32_t next = -1;  // in the list of its state
    std::int32_t boundary = 0;
    std::int32_t vertex = 0;
    std::int32_t first = 0;
    std::int32_t level = no_level;  // of the cut before this stage once arrived, then its weight level
    std::uint32_t visited = 0;      // visited set as in cost_to_go.hpp
    bool is_arrived = false;        // on the node, nothing computed yet; else its stage ends at the boundary
    bool is_dominated = false;      // by a later label of the same state
};

// The most that sending can add to what is open; infinite while the stage still grows.
struct Growth {
    double prefill;
    double token;
};

// What is open does not matter as long as it stays below the other label's maximum whatever sending adds.
inline bool is_no_worse(const Load& a, const Load& b, double growth) {
    return a.sum <= b.sum && a.max <= b.max && (a.open <= b.open || a.open + growth <= b.max);
}

// Every completion of b completes a at no higher objective, memory or loss. Both are of the same state: in free order
// their visited sets are equal, in fixed order a visited set is a number of stages.
inline bool dominates(const Label& a, const Label& b, const Growth& growth) {
    return a.loss <= b.loss && is_no_worse(a.prefill, b.prefill, growth.prefill) &&
           is_no_worse(a.token, b.token, growth.token) && a.return_s <= b.return_s && a.visited <= b.visited;
}

}  // namespace orbitsplit::planner
