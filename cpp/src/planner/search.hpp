// Best-first search over labels: partial plans with their sums, maxima, loss, and what is open on the last stage.
#pragma once

#include <cstddef>
#include <string>

#include "planner/root.hpp"

namespace orbitsplit::planner {

struct SearchResult {
    bool is_complete = false;  // every label that could lead to a better plan was expanded
    double lower_bound_s = 0;  // of plans better than the incumbent; meaningless when complete
    std::size_t labels = 0;
    std::string stopped_by;  // what ended the search: "labels", "bytes", "time" or "stop"
};

// What a reached limit is: "time" or "stop".
inline std::string stopped_by(const TimeLimit& time_limit) {
    return time_limit.is_stopped() ? "stop" : "time";
}

// Improves the root's incumbent until it is proven best or a limit is reached.
SearchResult search(const Problem& problem, const Tables& t, const Relaxation& least, Root& root,
                    const TimeLimit& time_limit, std::size_t max_labels);

}  // namespace orbitsplit::planner
