package riverguard_test

const childEnv = "RIVERGUARD_CHILD"

func child(string) int { return 1 }
