from collegium.base.suggestion import did_you_mean


def test_a_near_name_is_asked_about_and_others_are_listed():
    assert did_you_mean("rnk", ["rank", "alpha"]) == "did you mean `rank`?"
    assert did_you_mean("x", ["rank", "alpha"]) == "known are rank, alpha"
    assert did_you_mean("rnk", ["rank", "alpha"], always_list=True) == "did you mean `rank`? Known are rank, alpha"
