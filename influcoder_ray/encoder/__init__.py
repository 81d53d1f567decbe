"""The student: a text encoder whose cosines reproduce the teacher's influence."""
