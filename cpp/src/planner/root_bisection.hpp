// The root of a free-order search whose relaxations are large and good: few of them, each where the bound is
// lowest.
#pragma once

#include "planner/root.hpp"

namespace orbitsplit::planner {

// As explore_root(), but every interval has one relaxation, and intervals are halved one at a time, the one
// with the smallest bound first, until all promise less than the incumbent or a limit is reached: time, the width
// `narrowest` in parts of the incumbent, or max_bytes of relaxations. Halves nothing without an incumbent.
Root deepen_root(const Problem& problem, const Tables& t, Objective objective, const Relaxation& least,
                 const Clock& clock, Incumbent incumbent, double narrowest, std::size_t max_bytes);

}  // namespace orbitsplit::planner
