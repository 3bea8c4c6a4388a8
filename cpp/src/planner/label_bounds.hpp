// The bounds of bounds.hpp for one metric.
#pragma once

#include <vector>

#include "planner/label.hpp"
#include "planner/root.hpp"

namespace orbitsplit::planner {

class LabelBounds {
  public:
    LabelBounds(const Tables& t, const Metric& metric, const std::vector<Interval>& intervals);

    // The least objective of a plan that extends the label and beats the incumbent, infinite where none can.
    // The label's state is given as bounds.hpp numbers it.
    double bound(const Label& label, std::size_t at) const;

  private:
    struct Band {
        double low;
        std::size_t first;  // columns of its relaxations
        std::size_t stop;
    };

    double decode_sum_;
    double prefill_max_;
    double decode_max_;
    double loss_limit_;
    std::vector<Band> bands_;
    std::vector<double> prices_;         // columns
    std::vector<const double*> depart_;  // columns; the intervals' relaxations own what they point to
    std::vector<const double*> arrive_;
};

}  // namespace orbitsplit::planner
